"""The demo model that ships with Sterna: a Hugging Face folder, found beside this file.

Out: `FOLDER`, its path. It reads nothing: whoever opens the folder checks it like any other.
How it was made: `examples/demo_model/`.
"""

from pathlib import Path

FOLDER: Path = Path(__file__).resolve().parent
