"""Counters in the text format of Prometheus.

In: the engines' own counters and histograms, and what became of each request. Out: a page. Where
the meaning is vLLM's the name is vLLM's too, so its dashboards show this server; the rest begins
with `sterna_`. Requests are counted on the event loop's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sterna.engine.engine import AsyncEngine
from sterna.engine.metrics import Histogram
from sterna.serve.models import Model

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# Name, key of the engine's metrics, type, help.
_COUNTERS = (
    ("vllm:num_requests_running", "running", "gauge", "Sequences in the running batch."),
    ("vllm:num_requests_waiting", "waiting", "gauge", "Sequences that wait for room."),
    ("vllm:num_preemptions_total", "preemptions", "counter", "Sequences put back to wait."),
    ("vllm:prompt_tokens_total", "prompt_tokens", "counter", "Prompt tokens computed."),
    ("vllm:generation_tokens_total", "completion_tokens", "counter", "Tokens generated."),
    ("vllm:prefix_cache_queries_total", "prefix_queries", "counter", "Prompt tokens looked up."),
    ("vllm:prefix_cache_hits_total", "prefix_hits", "counter", "Prompt tokens found cached."),
    ("vllm:spec_decode_num_drafts_total", "drafts", "counter", "Times guesses were verified."),
    ("vllm:spec_decode_num_draft_tokens_total", "draft_tokens", "counter", "Tokens guessed."),
    (
        "vllm:spec_decode_num_accepted_tokens_total",
        "draft_tokens_accepted",
        "counter",
        "Tokens guessed right.",
    ),
    ("sterna_requests_cancelled_total", "cancelled", "counter", "Requests whose client left."),
    ("sterna_requests_failed_total", "failed", "counter", "Requests that ended in an error."),
    ("sterna_steps_total", "steps", "counter", "Steps of the device."),
    ("sterna_step_seconds_total", "step_seconds", "counter", "Time in steps of the device."),
)
# Name, key of the engine's histograms, help.
_HISTOGRAMS = (
    ("vllm:request_queue_time_seconds", "queue_seconds", "From arrival to the first step."),
    ("vllm:request_prefill_time_seconds", "prefill_seconds", "From there to the first token."),
    ("vllm:request_decode_time_seconds", "decode_seconds", "From there to the last."),
    ("vllm:time_to_first_token_seconds", "time_to_first_token_seconds", "From arrival to it."),
    ("vllm:inter_token_latency_seconds", "inter_token_seconds", "From a token to the next."),
    ("vllm:e2e_request_latency_seconds", "request_seconds", "From arrival to the last token."),
    ("vllm:request_prompt_tokens", "prompt_tokens", "Tokens of a request's prompt."),
    ("vllm:request_generation_tokens", "completion_tokens", "Tokens of its answers."),
    ("vllm:iteration_tokens_total", "step_tokens", "Tokens that a step ran."),
)


class Metrics:
    """Of one server. `open` is the number of requests being answered now."""

    def __init__(self) -> None:
        self.open = 0
        self._finished: Counter[tuple[str, str]] = Counter()
        self._answers: Counter[tuple[str, int]] = Counter()

    def answered(self, path: str, status: int) -> None:
        """A request ended; status 499: its client left before the answer began."""
        self._answers[path, status] += 1

    def finished(self, model: str, reason: str) -> None:
        """An answer is complete."""
        self._finished[model, reason] += 1

    def page(self, engines: Mapping[str, Model]) -> str:
        counters = {model: engine.metrics() for model, engine in engines.items()}
        histograms = {
            model: engine.histograms()
            for model, engine in engines.items()
            if isinstance(engine, AsyncEngine)
        }
        lines = [*_counter_lines(counters), *_histogram_lines(histograms), *self._answer_lines()]
        return "\n".join(lines) + "\n"

    def _answer_lines(self) -> Iterator[str]:
        yield from _head("vllm:request_success_total", "counter", "Answers by how they ended.")
        for (model, reason), count in sorted(self._finished.items()):
            labels = f'{_labels(model)},finished_reason="{reason}"'
            yield f"vllm:request_success_total{{{labels}}} {count}"
        yield from _head("sterna_http_requests_open", "gauge", "Requests being answered.")
        yield f"sterna_http_requests_open {self.open}"
        yield from _head("sterna_http_requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self._answers.items()):
            yield f'sterna_http_requests_total{{path="{path}",status="{status}"}} {count}'


def _counter_lines(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for name, key, kind, text in _COUNTERS:
        yield from _head(name, kind, text)
        for model, values in found.items():
            if key in values:  # an embedding model has few of them
                yield f"{name}{{{_labels(model)}}} {values[key]}"
    yield from _head("vllm:kv_cache_usage_perc", "gauge", "Share of the cache's pages in use.")
    for model, values in found.items():
        if "pages_total" not in values:
            continue
        used = 1 - values["pages_free"] / values["pages_total"]
        yield f"vllm:kv_cache_usage_perc{{{_labels(model)}}} {used}"


def _histogram_lines(found: Mapping[str, Mapping[str, Histogram]]) -> Iterator[str]:
    for name, key, text in _HISTOGRAMS:
        yield from _head(name, "histogram", text)
        for model, histograms in found.items():
            yield from histogram_lines(name, _labels(model), histograms[key])


def histogram_lines(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    """Prometheus counts upwards: each bucket holds those of the buckets before it."""
    running = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), list(histogram.counts)):
        running += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {running}'
    yield f"{name}_sum{{{labels}}} {histogram.total}"
    yield f"{name}_count{{{labels}}} {running}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _labels(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model_name="{escaped}",engine="0"'
