"""How fast an engine in this process reads prompts and writes answers, in llama-bench's manner.

In: an engine without a prefix cache, and sizes. Out: metrics "pp512" (tokens a second of a prompt)
and "tg128" (of an answer after one token; "tg128x8": of eight answers at once), with samples; and
phases, which set a step's bytes and operations against what the machine can do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import msgspec

from sterna.base.artifact import Entry, Manifest
from sterna.base.errors import RequestError
from sterna.cli.bench_report import KernelTime, Metric, PhaseReport
from sterna.engine.engine import Engine
from sterna.inspection.costs import step_cost
from sterna.inspection.kernel_times import StepTimes
from sterna.inspection.peaks import Peaks

Progress = Callable[[str], None]
Draw = Callable[[int], list[int]]  # random token ids
Step = tuple[Entry, int, int]  # cached tokens, new tokens


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
    manifest: Manifest, chunk: int, metrics: Sequence[Metric], peaks: Peaks
) -> tuple[PhaseReport, ...]:
    """The steps behind the metrics of one sequence, where the library says what they cost."""
    steps = ((metric, phase_steps(manifest, chunk, metric.name)) for metric in metrics)
    return tuple(_phase(metric, manifest, found, peaks) for metric, found in steps if found)


def phase_steps(manifest: Manifest, chunk: int, name: str) -> list[Step]:
    """The steps behind a metric; none for one of several sequences.

    The library's formulas are of one sequence.
    """
    entries = {entry.name: entry for entry in manifest.entries}
    kind, size = name[:2], name[2:]
    length = int(size) if size.isdigit() else 0
    if kind == "pp" and "prefill" in entries:
        parts = [(at, min(chunk, length - at)) for at in range(0, length, chunk)]
        return [(_of_prompt(entries, tokens), at, tokens) for at, tokens in parts]
    if kind == "tg" and "decode" in entries and length > 1:
        return [(entries["decode"], length // 2, 1)]  # costs grow with the context, evenly
    return []


def _of_prompt(entries: Mapping[str, Entry], tokens: int) -> Entry:
    """The entry point that takes a part of a prompt: what is short enough is verified."""
    verify = entries.get("verify")
    most = next((d.hi for d in verify.dims if d.name == "n"), 0) if verify else 0
    return verify if verify and tokens <= most else entries["prefill"]


def with_kernels(
    phase: PhaseReport, manifest: Manifest, steps: Sequence[Step], times: Sequence[StepTimes]
) -> PhaseReport:
    """A phase with the times of its steps' kernels, `times` a step."""
    found: dict[str, KernelTime] = {}
    for (entry, context, tokens), step in zip(steps, times, strict=True):
        for cost in step_cost(manifest, entry, context, tokens, rows=1).kernels:
            name, old = cost.kernel.name, found.get(cost.kernel.name)
            found[name] = KernelTime(
                name=name,
                launches=cost.launches + (old.launches if old else 0),
                seconds=step.kernels.get(name, 0.0) + (old.seconds if old else 0.0),
                bytes=cost.launches * cost.bytes + (old.bytes if old else 0),
                flops=cost.launches * cost.flops + (old.flops if old else 0),
            )
    return msgspec.structs.replace(
        phase,
        kernels=tuple(sorted(found.values(), key=lambda kernel: -kernel.seconds)),
        waiting=sum(step.waiting for step in times),
        host=sum(step.host for step in times),
    )


def _phase(metric: Metric, manifest: Manifest, steps: Sequence[Step], peaks: Peaks) -> PhaseReport:
    costs = [step_cost(manifest, *step, rows=1) for step in steps]
    tokens = sum(count for *_, count in steps)
    seconds = tokens / metric.value
    moved, flops = sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs)
    return PhaseReport(
        name=metric.name,
        tokens=tokens,
        context=steps[0][1],
        seconds=seconds,
        bytes=moved,
        flops=flops,
        bytes_per_s=moved / seconds,
        flops_per_s=flops / seconds,
        copy_bytes_per_s=peaks.bandwidth,
        peak_flops_per_s=peaks.flops,
    )
