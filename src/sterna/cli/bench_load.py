"""A server under load: requests as many at once, or as often, as asked; what its users would feel.

In: a server and LoadOptions. Out: metrics of throughput and of latencies, with their quantiles. A
request's time begins when it should have been sent, so a client that falls behind hides nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from sterna.base.errors import Unavailable
from sterna.cli.bench_client import Connection, Sample, Server, ask, first_model
from sterna.cli.bench_report import QUANTILES, Metric

_WORDS = (
    "time people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word"
).split()
_SHOWN = (50, 95, 99)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`rate`: requests a second on average, at random moments; None: the next when one is done.

    `concurrency`: most requests at once. Prompts have `prompt_words` random words and have nothing
    in common. `ignore_eos` is sent only if set: not every server knows it.
    """

    requests: int = 64
    concurrency: int = 8
    rate: float | None = None
    prompt_words: int = 64
    answer_tokens: int = 64
    ignore_eos: bool = False
    model: str | None = None
    seed: int = 0
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """All requests, and the seconds from the first to the end of the last."""

    model: str
    samples: tuple[Sample, ...]
    seconds: float

    @property
    def failures(self) -> dict[str, int]:
        """How often each error came, the most frequent first."""
        return dict(Counter(s.error for s in self.samples if s.error is not None).most_common())


async def load(to: Server, options: LoadOptions, tell: Progress) -> Load:
    """Ask once for warming up, then under load. Unavailable where not even that is answered."""
    model = options.model or await first_model(to)
    bodies = _bodies(options, model)
    connection = Connection(to)
    first = await ask(connection, next(bodies), time.perf_counter(), options.timeout_s)
    connection.close()
    if first.error is not None:
        raise Unavailable(f"{to.url.geturl()} does not answer: {first.error}")
    began = time.perf_counter()
    samples = await _run(to, options, bodies, began, tell)
    return Load(model, tuple(samples), time.perf_counter() - began)


async def _run(
    to: Server,
    options: LoadOptions,
    bodies: Iterator[dict[str, Any]],
    began: float,
    tell: Progress,
) -> list[Sample]:
    """Workers, each with a connection, take the requests in their order."""
    due = _moments(options, began)
    samples: list[Sample] = []

    async def work() -> None:
        connection = Connection(to)
        for moment in due:
            body = next(bodies)
            await asyncio.sleep(max(0.0, (moment or 0.0) - time.perf_counter()))
            begun = moment or time.perf_counter()
            samples.append(await ask(connection, body, begun, options.timeout_s))
            tell(len(samples), options.requests)
        connection.close()

    workers = min(options.concurrency, options.requests)
    await asyncio.gather(*(work() for _ in range(workers)))
    return samples


def _moments(options: LoadOptions, began: float) -> Iterator[float | None]:
    """When each request is due; None: at once."""
    draw, moment = random.Random(options.seed), began
    for _ in range(options.requests):
        if options.rate is None:
            yield None
        else:
            yield moment
            moment += draw.expovariate(options.rate)


def _bodies(options: LoadOptions, model: str) -> Iterator[dict[str, Any]]:
    draw = random.Random(options.seed)
    while True:
        words = " ".join(draw.choices(_WORDS, k=options.prompt_words))
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": options.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        yield body | ({"ignore_eos": True} if options.ignore_eos else {})


def metrics(found: Load) -> tuple[Metric, ...]:
    """Throughput, latencies at 50, 95 and 99 %, and how many requests failed."""
    good = [sample for sample in found.samples if sample.error is None]
    written = sum(sample.output_tokens for sample in good)
    rates = [
        _metric("requests", len(good) / found.seconds, "requests/s", "higher"),
        _metric("output", written / found.seconds, "tokens/s", "higher"),
    ]
    latencies = [
        _metric(f"{name} p{share}", values[share], "s", "lower")
        for name, values in quantiles(found).items()
        for share in _SHOWN
    ]
    failed = _metric("failed", len(found.samples) - len(good), "requests", "lower")
    return (*rates, *latencies, failed)


def _metric(name: str, value: float, unit: str, better: Literal["higher", "lower"]) -> Metric:
    return Metric(name=name, unit=unit, better=better, value=value)


def quantiles(found: Load) -> dict[str, tuple[float, ...]]:
    """Seconds at 0 to 100 %: to the first token, between tokens, and to the end of an answer."""
    good = [sample for sample in found.samples if sample.error is None]
    times = {
        "first token": [s.pieces[0] - s.begun for s in good if s.pieces],
        "between tokens": [late - early for s in good for early, late in pairwise(s.pieces)],
        "whole answer": [s.ended - s.begun for s in good],
    }
    return {name: _quantiles(values) for name, values in times.items() if values}


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.quantile(values, np.linspace(0, 1, QUANTILES)))
