"""The demo model that ships with Sterna: a Hugging Face folder, found beside this file.

Out: `FOLDER`, its path, and `QUANTIZATION`, the scheme it runs in. It reads nothing:
whoever opens the folder checks it like any other. How it was made: `examples/demo_model/`.
"""

from pathlib import Path

FOLDER: Path = Path(__file__).resolve().parent
# As its card measures it: at 5 MB there is nothing to gain from fewer bits.
QUANTIZATION = "q0f16"
