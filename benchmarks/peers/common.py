"""What the runner of every engine shares: its command line, the prompts, the rates.

    PYTHON peer_X.py make SOURCE OUTPUT FORMAT        a Hugging Face folder in the engine's format
    PYTHON peer_X.py run OUTPUT FORMAT --threads N --tests 128:33,512:1

Runs in the engine's own Python, so it imports nothing but the standard library and knows neither
Sterna nor the other engines. A test is a prompt's length and a number of tokens to write; `run`
prints one JSON object: {"pp128": tokens a second of the prompt, "tg128": of what follows it};
with --processor-time, a second that the process had of a processor, which says something of one
thread on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_FEW = 30  # tokens whose time is lost in the scatter of a prompt's, where that is subtracted
WARM_UP = 16  # tokens of a prompt, and 4 of an answer
_IDS = range(1000, 100_000)  # within every vocabulary, and away from its control tokens


class Peer(Protocol):
    """A loaded model."""

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        """Seconds until the first token of a greedy answer, and until `count - 1` more.

        Nothing of an earlier call is reused, and no token ends the answer.
        """
        ...


Make = Callable[[Path, Path, str], None]  # Hugging Face folder, output, format
Load = Callable[[Path, str, int, int], Peer]  # output, format, threads, longest context


def main(make: Make, load: Load) -> None:
    """The command line of a runner."""
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    running = verbs.add_parser("run")
    making.add_argument("source", type=Path)
    for verb in (making, running):
        verb.add_argument("output", type=Path)
        verb.add_argument("format")
    running.add_argument("--threads", type=int, required=True)
    running.add_argument("--tests", type=_tests, required=True)
    running.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.verb == "make":
        make(options.source, options.output, options.format)
        return
    longest = max(length + count for length, count in options.tests)
    peer = load(options.output, options.format, options.threads, max(64, longest))
    print(json.dumps(_rates(peer, options.tests, options.processor_time)))


def _tests(text: str) -> list[tuple[int, int]]:
    pairs = [test.split(":") for test in text.split(",")]
    return [(int(length), int(count)) for length, count in pairs]


def _rates(peer: Peer, tests: list[tuple[int, int]], processor_time: bool) -> dict[str, float]:
    measure = _by_processor if processor_time else _by_clock
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.choice(_IDS) for _ in range(length)]

    peer.answer(prompt(WARM_UP), 4)
    found: dict[str, float] = {}
    for length, count in tests:
        first, rest = measure(peer, lambda length=length: prompt(length), count)
        found[f"pp{length}"] = round(length / first, 2)
        if count > (_FEW if processor_time else 1):
            found[f"tg{length}"] = round((count - 1) / rest, 2)
    return found


def _by_clock(peer: Peer, prompt: Callable[[], list[int]], count: int) -> tuple[float, float]:
    return peer.answer(prompt(), count)


def _by_processor(peer: Peer, prompt: Callable[[], list[int]], count: int) -> tuple[float, float]:
    """An answer of one token, and what a longer one takes beyond that."""
    spent = []
    for tokens in dict.fromkeys((1, count)):
        given, begin = prompt(), time.process_time()
        peer.answer(given, tokens)
        spent.append(time.process_time() - begin)
    return spent[0], spent[-1] - spent[0]


def check(condition: bool, what: str) -> None:
    """End with a sentence where an engine did something else than it was asked to."""
    if not condition:
        sys.exit(f"{Path(sys.argv[0]).name}: {what}")
