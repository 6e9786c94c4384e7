"""Counters in the text format of Prometheus.

In: what each answered request took, and the engines' own counters. Out: a page. Where the meaning
is vLLM's the name is vLLM's too, so its dashboards show this server; the rest begins with
`sterna_`. Everything is counted on the event loop's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sterna.engine.api import Timings, Usage

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
_FIRST = (*_SECONDS, 10.0, 20.0, 40.0, 80.0, 160.0)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(slots=True)
class Histogram:
    """How many observations fell below each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        running = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {running}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {running}"


@dataclass(slots=True)
class Observed:
    """What the requests of one model took."""

    first_token: Histogram = field(default_factory=lambda: Histogram(_FIRST))
    per_token: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    whole: Histogram = field(default_factory=lambda: Histogram(_WHOLE))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    answer_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    finished: Counter[str] = field(default_factory=Counter)


_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "first_token", "From the request to its first token."),
    ("vllm:inter_token_latency_seconds", "per_token", "Mean time between an answer's tokens."),
    ("vllm:e2e_request_latency_seconds", "whole", "From the request to its last token."),
    ("vllm:request_prompt_tokens", "prompt_tokens", "Tokens of a request's prompt."),
    ("vllm:request_generation_tokens", "answer_tokens", "Tokens of a request's answers."),
)
# Name, key of the engine's metrics, type, help.
_ENGINE = (
    ("vllm:num_requests_running", "running", "gauge", "Sequences in the running batch."),
    ("vllm:num_requests_waiting", "waiting", "gauge", "Sequences that wait for room."),
    ("vllm:num_preemptions_total", "preemptions", "counter", "Sequences put back to wait."),
    ("vllm:prompt_tokens_total", "prompt_tokens", "counter", "Prompt tokens computed."),
    ("vllm:generation_tokens_total", "completion_tokens", "counter", "Tokens generated."),
    ("vllm:prefix_cache_queries_total", "prefix_queries", "counter", "Prompt tokens looked up."),
    ("vllm:prefix_cache_hits_total", "prefix_hits", "counter", "Prompt tokens found cached."),
    ("sterna_requests_cancelled_total", "cancelled", "counter", "Requests whose client left."),
    ("sterna_requests_failed_total", "failed", "counter", "Requests that ended in an error."),
    ("sterna_steps_total", "steps", "counter", "Steps of the device."),
    ("sterna_step_seconds_total", "step_seconds", "counter", "Time in steps of the device."),
)


class Metrics:
    """Of one server. `open` is the number of requests being answered now."""

    def __init__(self, models: Iterable[str]) -> None:
        self.open = 0
        self._observed = {name: Observed() for name in models}
        self._answers: Counter[tuple[str, int]] = Counter()

    def answered(self, path: str, status: int) -> None:
        """A request ended; status 499: its client left before the answer began."""
        self._answers[path, status] += 1

    def finished(
        self, model: str, usage: Usage, timings: Timings, seconds: float, reasons: Iterable[str]
    ) -> None:
        """All answers to a request are complete; `reasons` are those of its choices."""
        seen = self._observed[model]
        seen.first_token.observe(timings.time_to_first_token_s)
        if timings.decode_tokens_per_s:
            seen.per_token.observe(1 / timings.decode_tokens_per_s)
        seen.whole.observe(seconds)
        seen.prompt_tokens.observe(usage.prompt_tokens)
        seen.answer_tokens.observe(usage.completion_tokens)
        seen.finished.update(reasons)

    def page(self, engines: Mapping[str, Mapping[str, float]]) -> str:
        """`engines`: each model's own counters."""
        lines = [*self._engine_lines(engines), *self._histogram_lines(), *self._answer_lines()]
        return "\n".join(lines) + "\n"

    def _engine_lines(self, engines: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
        for name, key, kind, text in _ENGINE:
            values = {model: found[key] for model, found in engines.items() if key in found}
            if values:
                yield from _head(name, kind, text)
            for model, value in values.items():
                yield f"{name}{{{_labels(model)}}} {value}"
        yield from _head("vllm:kv_cache_usage_perc", "gauge", "Share of the cache's pages in use.")
        for model, found in engines.items():
            used = 1 - found["pages_free"] / found["pages_total"]
            yield f"vllm:kv_cache_usage_perc{{{_labels(model)}}} {used}"

    def _histogram_lines(self) -> Iterator[str]:
        for name, key, text in _HISTOGRAMS:
            yield from _head(name, "histogram", text)
            for model, seen in self._observed.items():
                yield from getattr(seen, key).lines(name, _labels(model))
        yield from _head("vllm:request_success_total", "counter", "Answers by how they ended.")
        for model, seen in self._observed.items():
            for reason, count in sorted(seen.finished.items()):
                labels = f'{_labels(model)},finished_reason="{reason}"'
                yield f"vllm:request_success_total{{{labels}}} {count}"

    def _answer_lines(self) -> Iterator[str]:
        yield from _head("sterna_http_requests_open", "gauge", "Requests being answered.")
        yield f"sterna_http_requests_open {self.open}"
        yield from _head("sterna_http_requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self._answers.items()):
            yield f'sterna_http_requests_total{{path="{path}",status="{status}"}} {count}'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _labels(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model_name="{escaped}",engine="0"'
