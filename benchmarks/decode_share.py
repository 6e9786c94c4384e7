"""How near whole decode steps come to what the machine reads from memory.

    python benchmarks/decode_share.py MODEL [--tokens 16] [--rounds 15] [--threads 2]

MODEL is a converted model whose every weight a step reads once: with tied embeddings. Each round
reads memory (the loop of `cpu_floor.py`, on as many threads) before and after an answer is decoded,
so that other programs disturb both alike; a round's share is of the mean of its reads. Writes
results/decode_share.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from batch_decode import rate
from cpu_floor import Floor, source

from sterna.base.target import host_target
from sterna.codegen.toolchain import compile_library
from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions
from sterna.local import locate
from sterna.runtime.host import cpu_name, usable_cores

RESULTS = Path(__file__).parent / "results" / "decode_share.json"
_READS = 24  # calls that a reading takes, of 8 MiB each


def reading(floor: Floor) -> float:
    """Gigabytes a second. Its threads are awake meanwhile only: a step wants the processors."""
    floor.team.begin()
    rates = [floor.rate("read") for _ in range(_READS)]
    floor.team.end()
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    weights = sum(shard.stat().st_size for shard in args.model.glob("params_shard_*.bin"))
    rounds: list[tuple[float, float]] = []
    located = locate(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"floor{host_target().suffix}"
        compile_library(source(), host_target(), path)
        lib = ctypes.CDLL(str(path))
        options = EngineOptions(threads=args.threads)
        with Engine(resolve=lambda *_: located, options=options) as engine:
            rate(engine, 1, 4)
            with Floor(lib, args.threads) as floor:
                for _ in range(args.rounds):
                    before = reading(floor)
                    tokens = rate(engine, 1, args.tokens)[0]
                    rounds.append((tokens, (before + reading(floor)) / 2))
    shares = [tokens * weights / 1e9 / read for tokens, read in rounds]
    result: dict[str, Any] = {
        "processor": cpu_name(),
        "threads": args.threads,
        "weights_bytes": weights,
        "tokens_per_s": round(statistics.median(tokens for tokens, _ in rounds), 2),
        "read_gigabytes_per_s": round(statistics.median(read for _, read in rounds), 1),
        "share_of_read": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }
    text = json.dumps(result, indent=2)
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
