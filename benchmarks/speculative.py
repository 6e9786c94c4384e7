"""Guessing ahead against plain decoding: when guesses are right, and when they never are.

    python benchmarks/speculative.py [--scheme q4f16_1] [--threads 1] [--tokens 200] [--rounds 5]

A random model of 0.3 billion weights, compiled for this machine, and one request at a time.
Greedy, such a model soon repeats itself, so n-grams guess right; at a high temperature it says
anything, so what they guess is wrong, and the engine has to notice. Each round measures both ways
of decoding, so that other programs disturb both alike; the ratio is the median over rounds. The
answers of both are compared. Writes results/speculative.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from batch_decode import CONFIG
from random_model import write_model

from sterna.engine.engine import Engine
from sterna.engine.loader import Located
from sterna.engine.options import EngineOptions
from sterna.local import locate
from sterna.runtime.host import cpu_name, usable_cores

RESULTS = Path(__file__).parent / "results" / "speculative.json"
CASES = {"repeats itself": 0.0, "says anything": 1.5}
PROMPT = [7 + i % 5 for i in range(40)]  # an ending that occurred before: there is always a guess


def answer(engine: Engine, temperature: float, tokens: int) -> tuple[float, list[int], float]:
    """Processor seconds a token, the tokens, and the share of guesses that were right."""
    used = time.process_time()
    made = engine.completions.create(
        prompt=PROMPT,
        max_tokens=tokens,
        ignore_eos=True,
        temperature=temperature,
        seed=1,
        return_token_ids=True,
    )
    used = time.process_time() - used
    assert made.usage is not None
    details = made.usage.completion_tokens_details
    right, wrong = details.accepted_prediction_tokens, details.rejected_prediction_tokens
    return used / tokens, made.choices[0].token_ids or [], right / max(1, right + wrong)


def measure(located: Located, args: argparse.Namespace) -> dict[str, Any]:
    def engine(speculative: str) -> Engine:
        options = EngineOptions(
            mode="interactive", threads=args.threads, speculative=speculative, prefix_cache=False
        )
        return Engine(resolve=lambda *_: located, options=options)

    found: dict[str, Any] = {}
    with engine("off") as plain, engine("ngram") as guessing:
        for case, temperature in CASES.items():
            rounds = []
            for _ in range(args.rounds + 1):
                before, wanted, _ = answer(plain, temperature, args.tokens)
                after, tokens, right = answer(guessing, temperature, args.tokens)
                assert tokens == wanted, "guesses changed an answer"
                rounds.append((before / after, right, 1 / before, 1 / after))
            faster, right, plainly, guessed = (
                statistics.median(column) for column in zip(*rounds[1:], strict=True)
            )
            found[case] = {
                "times_as_fast": round(faster, 2),
                "guesses_right": round(right, 2),
                "plain_tokens_per_processor_s": round(plainly, 1),
                "guessing_tokens_per_processor_s": round(guessed, 1),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheme", default="q4f16_1")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "random"
        write_model(CONFIG, source)
        found = measure(locate(source, quantization=args.scheme), args)
    found = {"processor": cpu_name(), "threads": args.threads or usable_cores()} | found
    print(json.dumps(found, indent=2))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
