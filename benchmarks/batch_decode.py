"""Eight decodes at once against one: weights are read once a step, whoever it serves.

    python benchmarks/batch_decode.py [--schemes q4f16_1 q4f16_1+i8] [--threads 1] [--rounds 5]

A random model of 0.3 billion weights, compiled for this machine, with `+i8` for activations of 8
bits. Each round measures one sequence, then eight, so that other programs disturb both alike; the
ratio is the median over rounds. Writes results/batch_decode.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from random_model import write_model

from sterna.base.artifact import CompileOptions
from sterna.base.target import host_target
from sterna.compiler import compile_model
from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions
from sterna.local import locate
from sterna.runtime.host import cpu_name, usable_cores

RESULTS = Path(__file__).parent / "results" / "batch_decode.json"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rate(engine: Engine, sequences: int, tokens: int) -> tuple[float, float]:
    """Tokens a second while all sequences decode, by the clock and by the processor's time.

    Their prompts are a token each.
    """
    prompts = [[7 + i] for i in range(sequences)]
    began, used = time.perf_counter(), time.process_time()
    made = engine.completions.create(
        prompt=prompts, max_tokens=tokens, ignore_eos=True, temperature=0
    )
    seconds, used = time.perf_counter() - began, time.process_time() - used
    assert made.usage is not None
    assert made.usage.completion_tokens == sequences * tokens
    return sequences * tokens / seconds, sequences * tokens / used


def measure(source: Path, scheme: str, args: argparse.Namespace) -> dict[str, Any]:
    scheme, _, activations = scheme.partition("+")
    located = locate(source, quantization=scheme)
    if activations:
        target = host_target()
        library = source / f"{scheme}-{activations}{target.suffix}"
        asked = CompileOptions(activations=activations)  # type: ignore[arg-type]
        compile_model(located.folder, target, library, options=asked)
        located = replace(located, library=library)
    options = EngineOptions(
        mode="server",
        max_num_sequence=args.sequences,
        max_total_tokens=8192,
        threads=args.threads,
    )
    with Engine(resolve=lambda *_: located, options=options) as engine:
        rate(engine, args.sequences, 4)
        rounds = [
            (rate(engine, 1, args.tokens), rate(engine, args.sequences, args.tokens))
            for _ in range(args.rounds)
        ]
    return {
        "by_the_clock": compared([(one[0], many[0]) for one, many in rounds]),
        "by_processor_time": compared([(one[1], many[1]) for one, many in rounds]),
    }


def compared(rounds: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "one_tokens_per_s": round(statistics.median(one for one, _ in rounds), 1),
        "all_tokens_per_s": round(statistics.median(many for _, many in rounds), 1),
        "ratio": round(statistics.median(many / one for one, many in rounds), 2),
        "ratios": [round(many / one, 2) for one, many in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--schemes", nargs="+", default=["q4f16_1", "q0f16"])
    args = parser.parse_args()
    found: dict[str, Any] = {
        "processor": cpu_name(),
        "threads": args.threads or usable_cores(),
        "sequences": args.sequences,
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "random"
        write_model(CONFIG, source)
        for scheme in args.schemes:
            found[scheme] = measure(source, scheme, args)
    print(json.dumps(found, indent=2))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
