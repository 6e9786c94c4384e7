"""A cold process to its first token, and the most memory that it takes.

    python benchmarks/cold_start.py MODEL [--model-lib LIB] [--rounds 5] [--prompt-tokens 1024]

MODEL is a converted folder. Each round starts `sterna generate` anew and takes the time until the
first text arrives, with the weights in the page cache and the library made before; that is what
someone waits at a terminal. A process more reads a prompt of --prompt-tokens and writes a few
tokens, so that a part of its KV cache as long is in use, and its peak of resident memory (Linux:
VmHWM, mapped weights included) is set against the weights and that part. Writes
results/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cold_start.json"
ANSWER = 8  # tokens

# Prints one JSON object. Memory is asked for before the imports of this script could add to it.
_MEMORY = """
import json, sys
from sterna.local import Engine
model, library = sys.argv[1], sys.argv[2] or None
tokens, answer = int(sys.argv[3]), int(sys.argv[4])
with Engine(model, library) as engine:
    prompt = [i % engine.tokenizer.vocab_size for i in range(7, 7 + tokens)]
    engine.completions.create(prompt=prompt, max_tokens=answer, ignore_eos=True, temperature=0)
    status = open("/proc/self/status").read()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    manifest = engine.manifest
    from sterna.runtime.memory import packed_bytes
    print(json.dumps({
        "peak": int(peak.split()[1]) * 1024,
        "weights": sum(packed_bytes(p) for p in manifest.params),
        "kv_cache": (tokens + answer) * manifest.kv_cache.bytes_per_token,
    }))
"""


def environment() -> dict[str, str]:
    """That of an installed Sterna, whose modules are compiled to bytecode once."""
    found = dict(os.environ) | {"PYTHONPATH": str(ROOT / "src")}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def first_token(model: Path, library: Path | None) -> float:
    """Seconds from the start of a process to the first byte of its answer."""
    command = [sys.executable, "-m", "sterna", "generate", str(model), "--prompt", "Once upon"]
    command += ["--max-tokens", str(ANSWER), "--ignore-eos", "--temperature", "0"]
    command += ["--model-lib", str(library)] if library else []
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        found = process.stdout.read(1)
        took = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode or not found:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return took


def memory(model: Path, library: Path | None, tokens: int) -> dict[str, int]:
    """Bytes: the peak of a process, its weights, and what its tokens take in the KV cache."""
    sizes = [str(tokens), str(ANSWER)]
    command = [sys.executable, "-c", _MEMORY, str(model), str(library or ""), *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found | {"beyond": found["peak"] - found["weights"] - found["kv_cache"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    options = parser.parse_args()
    first_token(options.model, options.model_lib)  # makes what is missing
    times = [first_token(options.model, options.model_lib) for _ in range(options.rounds)]
    result: dict[str, Any] = {
        "model": options.model.name,
        "library_given": options.model_lib is not None,
        "seconds_to_first_token": {
            "median": round(statistics.median(times), 3),
            "all": [round(t, 3) for t in times],
        },
        "bytes": memory(options.model, options.model_lib, options.prompt_tokens),
    }
    text = json.dumps(result, indent=2)
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
