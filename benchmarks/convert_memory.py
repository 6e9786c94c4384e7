"""How much memory converting a large checkpoint takes: a checkpoint of 4 GB is made and converted.

    python benchmarks/convert_memory.py [--gigabytes 4] [--quantization q4f16_1]

The weights are one block of random numbers over and over, written as a Llama of the 7B shape with
fewer layers. Conversion runs in a process of its own; its peak resident memory, less that of the
largest tensor, must stay under 1 GB. Prints and writes benchmarks/results/convert_memory.json.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from random_model import source_shapes, write_weights  # noqa: E402

from sterna.convert import convert_weight  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "convert_memory.json"
LIMIT_BYTES = 10**9
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def main() -> None:
    """Measure once and say whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--convert", nargs=2, metavar=("SOURCE", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.convert:
        print(json.dumps(_convert(*map(Path, args.convert), args.quantization)))
        return
    result = measure(args.gigabytes, args.quantization)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["above_largest_tensor_bytes"] > LIMIT_BYTES:
        sys.exit(f"more than {LIMIT_BYTES} bytes above the largest tensor")


def measure(gigabytes: float, quantization: str) -> dict[str, Any]:
    """Make the checkpoint in a temporary folder, convert it in another process, and report."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "SRC", Path(folder) / "OUT"
        tensors = make_checkpoint(source, int(gigabytes * 1e9))
        command = [sys.executable, __file__, "--quantization", quantization]
        done = subprocess.run(
            [*command, "--convert", str(source), str(output)],
            check=True,
            stdout=subprocess.PIPE,
        )
        largest = max(tensors.values())
        child = json.loads(done.stdout)
        return {
            "quantization": quantization,
            "checkpoint_bytes": sum(tensors.values()),
            "largest_tensor_bytes": largest,
            "output_bytes": sum(path.stat().st_size for path in output.iterdir()),
            **child,
            "above_largest_tensor_bytes": child["peak_rss_bytes"] - largest,
        }


def make_checkpoint(folder: Path, size: int) -> dict[str, int]:
    """Write config and weights of at least `size` bytes; return each tensor's bytes."""
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {}
    layers = 0
    while 2 * sum(map(math.prod, shapes.values())) < size:
        layers += 1
        config = {**CONFIG, "num_hidden_layers": layers}
        shapes = source_shapes(config)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    write_weights(folder / "model.safetensors", shapes)
    return {name: 2 * math.prod(shape) for name, shape in shapes.items()}


def _convert(source: Path, output: Path, quantization: str) -> dict[str, Any]:
    start = time.perf_counter()
    receipt = convert_weight(source, output, quantization=quantization)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "parameters": receipt.total.parameters,
        "bits_per_weight": receipt.bits_per_weight,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak,
    }


if __name__ == "__main__":
    main()
