"""How fast an engine in this process reads prompts and writes answers, in llama-bench's manner.

In: an engine without a prefix cache, and sizes. Out: metrics "pp512" (tokens a second of a prompt)
and "tg128" (of an answer after one token; "tg128x8": of eight answers at once), with samples; and
phases, which set a step's bytes and operations against what the machine can do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import msgspec

from sterna.base.artifact import Entry, Manifest
from sterna.base.errors import RequestError
from sterna.cli.bench_report import KernelTime, Metric, PhaseReport
from sterna.engine.engine import Engine
from sterna.engine.limits import Limits
from sterna.inspection.costs import StepCost, step_cost, step_dims
from sterna.inspection.kernel_times import StepTimes
from sterna.inspection.peaks import Peaks
from sterna.runtime.batch import choose

Progress = Callable[[str], None]
Draw = Callable[[int], list[int]]  # random token ids


@dataclass(frozen=True, slots=True)
class Step:
    """One run of an entry point: `tokens` new ones after `context` cached, of each sequence."""

    entry: Entry
    context: int
    tokens: int
    sequences: int = 1

    def cost(self, manifest: Manifest) -> StepCost:
        """What it costs, with logits of each sequence's last token."""
        return step_cost(
            manifest, self.entry, self.context, self.tokens, self.sequences, self.sequences
        )


@dataclass(frozen=True, slots=True)
class RateOptions:
    """Tokens of the prompts and of the answers, answers at once, and how often each is measured."""

    prompts: tuple[int, ...] = (512,)
    answers: tuple[int, ...] = (128,)
    parallel: tuple[int, ...] = (1,)
    repetitions: int = 5


def rates(engine: Engine, options: RateOptions, tell: Progress) -> tuple[Metric, ...]:
    """Measure every size; one run of each warms up. RequestError for what the window lacks."""
    draw = random.Random(0)
    vocabulary = min(engine.tokenizer.vocab_size, engine.manifest.model.vocab_size)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(length)]

    def measure(name: str, once: Callable[[], float]) -> Metric:
        tell(name)
        once()
        samples = tuple(once() for _ in range(options.repetitions))
        value = median(samples)
        return Metric(name=name, unit="tokens/s", better="higher", value=value, samples=samples)

    found = [
        measure(f"pp{length}", partial(_prefill, engine, prompt, length))
        for length in options.prompts
    ]
    for length in options.answers:
        for count in options.parallel:
            name = f"tg{length}" if count == 1 else f"tg{length}x{count}"
            found.append(measure(name, partial(_decode, engine, prompt, length, count)))
    return tuple(found)


def _prefill(engine: Engine, prompt: Draw, length: int) -> float:
    result = engine.completions.create(
        prompt=prompt(length), max_tokens=1, temperature=0, ignore_eos=True
    )
    assert result.usage is not None, "a whole answer has its usage"
    assert result.timings is not None, "a whole answer has timings"
    if result.usage.prompt_tokens_details.cached_tokens:
        raise RequestError("prompts came from the prefix cache: measure with it turned off")
    return result.timings.prefill_tokens_per_s


def _decode(engine: Engine, prompt: Draw, length: int, count: int) -> float:
    """Tokens a second of all answers together, the first of each left out."""
    result = engine.completions.create(
        prompt=prompt(1),
        max_tokens=length,
        min_tokens=length,
        ignore_eos=True,
        temperature=0,
        n=count,
    )
    assert result.timings is not None, "a whole answer has timings"
    return result.timings.decode_tokens_per_s


def phases(
    manifest: Manifest, limits: Limits, metrics: Sequence[Metric], peaks: Peaks
) -> tuple[PhaseReport, ...]:
    """The steps behind the metrics, where each is known."""
    steps = ((metric, phase_steps(manifest, limits, metric.name)) for metric in metrics)
    return tuple(_phase(metric, manifest, found, peaks) for metric, found in steps if found)


def phase_steps(manifest: Manifest, limits: Limits, name: str) -> list[Step]:
    """The steps behind a metric; none for more answers than are written together.

    The null device's manifest has no entry points, and nothing that costs.
    """
    kind, (size, _, many) = name[:2], name[2:].partition("x")
    length, sequences = (int(s) if s.isdigit() else 0 for s in (size, many or "1"))
    if not manifest.entries:
        return []
    if kind == "pp":
        parts = [(at, min(limits.chunk, length - at)) for at in range(0, length, limits.chunk)]
        return [_step(manifest, *part) for part in parts]
    if kind == "tg" and length > 1 and 0 < sequences <= limits.max_sequences:
        return [_step(manifest, length // 2, 1, sequences)]  # costs grow with the context, evenly
    return []


def _step(manifest: Manifest, context: int, tokens: int, sequences: int = 1) -> Step:
    entries = {entry.name: entry for entry in manifest.entries}
    entry = choose(entries, step_dims(manifest, context, tokens, sequences))
    return Step(entry, context, tokens, sequences)


def with_kernels(
    phase: PhaseReport, manifest: Manifest, steps: Sequence[Step], times: Sequence[StepTimes]
) -> PhaseReport:
    """A phase with the times of its steps' kernels, `times` a step."""
    found: dict[str, KernelTime] = {}
    for step, took in zip(steps, times, strict=True):
        for cost in step.cost(manifest).kernels:
            name, old = cost.kernel.name, found.get(cost.kernel.name)
            found[name] = KernelTime(
                name=name,
                launches=cost.launches + (old.launches if old else 0),
                seconds=took.kernels.get(name, 0.0) + (old.seconds if old else 0.0),
                bytes=cost.launches * cost.bytes + (old.bytes if old else 0),
                flops=cost.launches * cost.flops + (old.flops if old else 0),
            )
    return msgspec.structs.replace(
        phase,
        kernels=tuple(sorted(found.values(), key=lambda kernel: -kernel.seconds)),
        waiting=sum(took.waiting for took in times),
        host=sum(took.host for took in times),
    )


def _phase(metric: Metric, manifest: Manifest, steps: Sequence[Step], peaks: Peaks) -> PhaseReport:
    costs = [step.cost(manifest) for step in steps]
    tokens = sum(step.sequences * step.tokens for step in steps)
    seconds = tokens / metric.value
    moved, flops = sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs)
    return PhaseReport(
        name=metric.name,
        tokens=tokens,
        context=steps[0].context,
        seconds=seconds,
        bytes=moved,
        flops=flops,
        bytes_per_s=moved / seconds,
        flops_per_s=flops / seconds,
        copy_bytes_per_s=peaks.bandwidth,
        peak_flops_per_s=peaks.flops,
    )
