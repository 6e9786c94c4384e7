"""How long a compile takes: the 8B shape of Llama 3, 4 bit, for the CPU. No weights are needed.

    python benchmarks/compile_time.py

Prints JSON and writes benchmarks/results/compile_time.json: seconds of the front end and of the C
compiler for 32 and 64 layers, each the smallest of some runs in fresh processes (smallest, because
what other programs do can only add), the ratio of the two depths, and a compile from the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sterna.base.artifact import CompileOptions
from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.codegen.toolchain import compile_library
from sterna.compiler import compile_model, compile_source

RESULT = Path(__file__).parent / "results" / "compile_time.json"
RUNS = 3
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
CHAT = {"context_window_size": 8192, "prefill_chunk_size": 512}


def measure(layers: int) -> dict[str, float]:
    """Front end and C compiler, once, in this process."""
    config = CONFIG | {"num_hidden_layers": layers}
    folder = ModelFolder(Path(), dict(CHAT), config, "llama", "q4f16_1", str(layers), {})
    start = time.perf_counter()
    source = compile_source(folder, parse_target("cpu"), CompileOptions())
    front = time.perf_counter() - start
    compile_library(source.text, parse_target("cpu"))
    return {"front_end_s": front, "c_compiler_s": time.perf_counter() - start - front}


def from_cache() -> float:
    """Seconds of `compile_model` when the library was made before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = CONFIG | {"num_hidden_layers": 32}
        chat = {**CHAT, "model_type": "llama", "quantization": "q4f16_1", "model_config": {}}
        (folder / "mlc-chat-config.json").write_text(json.dumps(chat))
        sterna = {"format": 1, "model_type": "llama", "quantization": "q4f16_1", "config": config,
                  "overrides": {}, "fingerprint": "benchmark"}  # fmt: skip
        (folder / "sterna.json").write_text(json.dumps(sterna))
        os.environ["STERNA_CACHE"] = str(folder / "cache")
        compile_model(folder, parse_target("cpu"), folder / "first.so")
        start = time.perf_counter()
        compile_model(folder, parse_target("cpu"), folder / "second.so")
        return time.perf_counter() - start


def smallest(layers: int) -> dict[str, float]:
    runs = []
    for _ in range(RUNS):
        command = [sys.executable, __file__, str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    best = {key: min(run[key] for run in runs) for key in runs[0]}
    return best | {"total_s": sum(best.values())}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    result = {"32 layers": smallest(32), "64 layers": smallest(64), "from_cache_s": from_cache()}
    ratio = result["64 layers"]["total_s"] / result["32 layers"]["total_s"]
    text = json.dumps(result | {"64 to 32": ratio}, indent=2)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
