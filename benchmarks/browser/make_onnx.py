"""A Hugging Face folder as transformers.js loads it: onnxruntime-genai's own builder, 4 bits, f32.

    PYTHON make_onnx.py SOURCE OUTPUT

Groups of 32, as in Sterna's q4f32_1. Runs in a Python that has onnxruntime_genai and onnx, and
torch and transformers for the builder. One file, with the cache's dims as numbers, which the
builder leaves open and transformers.js wants.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx

_OPTIONS = ("int4_block_size=32", "use_webgpu_fp32=true")


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    built = output.with_name(f"{output.name}-built")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(built), "-p", "int4", "-e", "webgpu", "-c", str(built / "cache")]
    subprocess.run([*command, "--extra_options", *_OPTIONS], check=True)
    model = onnx.load(str(built / "model.onnx"))
    config = json.loads((source / "config.json").read_text())
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            dims = value.type.tensor_type.shape.dim
            dims[1].dim_value = config["num_key_value_heads"]
            dims[3].dim_value = config["head_dim"]
    (output / "onnx").mkdir(parents=True)
    onnx.save(model, str(output / "onnx" / "model_q4.onnx"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, output / name)
    shutil.rmtree(built)


if __name__ == "__main__":
    main()
