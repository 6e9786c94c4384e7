"""The report on a compiled library: program, kernels, costs, memory and weights.

In: its manifest, and the peaks of this machine where charts are wanted. Out: its Report. The
library itself is not loaded.
"""

from __future__ import annotations

from pathlib import Path

from sterna.base.artifact import CompileOptions, Kernel, KVCache, Manifest, States
from sterna.base.dtype import dtype
from sterna.inspection.charts import arena_map, memory_bars, roofline, weight_bars
from sterna.inspection.costs import KernelCost, StepCost, chosen_context, step_costs
from sterna.inspection.document import (
    Chart,
    Line,
    Part,
    Report,
    Section,
    Table,
    decimal,
    duration,
    one_line,
    size,
)
from sterna.inspection.peaks import Peaks
from sterna.inspection.program import functions, programs
from sterna.inspection.weights import StoredTensor, by_group, by_scheme, weights_of
from sterna.runtime.host import usable_cores
from sterna.runtime.memory import memory_plan, packed_bytes


def library_report(
    path: Path, manifest: Manifest, context: int | None, peaks: Peaks | None
) -> Report:
    """Report on a library at `context` cached tokens; with charts where peaks are given.

    Raises UsageError for a context past the window, ArtifactError for a manifest that does not
    hold together.
    """
    chosen = chosen_context(manifest, context)
    costs = step_costs(manifest, chosen)
    model = manifest.model
    title = f"{path}: {model.model_type} in {model.quantization} for {manifest.target}"
    sections = (
        Section("Library", (_facts(manifest),)),
        functions(manifest),
        programs(manifest),
        *_cost_sections(costs, peaks),
        Section("Schedules", tuple(_schedules(manifest.kernels)), long=True),
        _memory(manifest, chosen, charts=peaks is not None),
        _weights(manifest, charts=peaks is not None),
    )
    return Report(one_line(title), sections)


_POOLED = {"cls": "the first token's state", "last": "the last token's", "mean": "states' mean"}


def _kept(kv: KVCache) -> tuple[str, str]:
    """What is kept of a sequence."""
    if kv.recurrent:
        return (
            "state",
            f"{kv.layers} layers of {kv.head_dim} numbers, {kv.dtype}, for each sequence",
        )
    heads = f"{kv.layers} layers of {kv.kv_heads} heads of {kv.head_dim}"
    return "KV cache", f"{heads}, {kv.dtype}, {kv.page_size} tokens a page"


def _states(states: States | None) -> list[tuple[str, str]]:
    """What recurrent layers keep beside it."""
    if states is None:
        return []
    numbers = f"{states.layers} layers of {states.elements} numbers, f32, for each sequence"
    return [("states", numbers)]


def _asked(options: CompileOptions) -> list[tuple[str, str]]:
    """What it was compiled with beside the folder's own words."""
    told = {name: getattr(options, name) for name in options.__struct_fields__}
    room = told.pop("adapters")
    given = [f"{name} {value}" for name, value in told.items() if value is not None]
    if room is not None:
        given.append(f"room for {room.count} adapters of ranks up to {room.rank}")
    return [("compiled with", ", ".join(given))] if given else []


def _facts(manifest: Manifest) -> Table:
    model, kv = manifest.model, manifest.kv_cache
    rows = [
        ("target", f"{manifest.target} ({', '.join(manifest.features) or 'no features needed'})"),
        ("made by Sterna", manifest.sterna),
        ("window", f"{model.context_window_size:,} tokens"),
        ("prefill chunk", f"{model.prefill_chunk_size:,} tokens"),
        ("sequences at once", f"up to {model.max_batch_size}"),
        _kept(kv),
        *_states(manifest.states),
        *_asked(manifest.options),
        ("fingerprint", model.fingerprint[:16]),
    ]  # fmt: skip
    if manifest.carried:
        rows.append(("carries", f"{', '.join(manifest.carried)}; this machine is shown one"))
    if model.pooling is not None:
        length = ", made of length 1" if model.normalize else ""
        rows.append(("embeddings", f"{_POOLED[model.pooling]}{length}"))
    if model.sliding_window_size > 0:
        sinks = max(0, model.attention_sink_size)
        rows.append(("sliding window", f"{model.sliding_window_size:,} tokens, {sinks} sinks"))
    return Table(("", ""), tuple((label, one_line(value)) for label, value in rows), left=2)


def _cost_sections(costs: tuple[StepCost, ...], peaks: Peaks | None) -> list[Section]:
    sections, first = [], 1
    for cost in costs:
        name = one_line(cost.entry.name)
        sections.append(Section(f"Kernels of {name}", _cost_parts(cost, peaks, first)))
        first += len(cost.kernels)
    if peaks is not None and costs:
        sections.append(Section("Roofline", (Chart(roofline(costs, peaks), _roof(peaks)),)))
    return sections


def _cost_parts(cost: StepCost, peaks: Peaks | None, first: int) -> tuple[Part, ...]:
    dims = ", ".join(f"{name} = {value}" for name, value in cost.dims.items() if name != "context")
    lines = [
        Line(f"One sequence, context of {cost.dims['context']:,} cached tokens; {one_line(dims)}."),
        Line("Items, FLOPs and bytes are those of a single launch, and of the whole step below."),
    ]
    return (*lines, _cost_table(cost, peaks, first))


def _cost_table(cost: StepCost, peaks: Peaks | None, first: int) -> Table:
    """On a page also a number that the roofline shows, and the least time of all launches."""
    head = ["kernel", "op", "launches", "items", "FLOPs", "bytes", "FLOP/byte"]
    rows = [_cost_row(one) for one in cost.kernels]
    total = ["step", "", str(sum(one.launches for one in cost.kernels)), "",
             decimal(cost.flops), size(cost.bytes), _ratio(cost.flops, cost.bytes)]  # fmt: skip
    if peaks is None:
        return Table(tuple(head), (*map(tuple, rows), tuple(total)), left=2, summed=True)
    times = [one.launches * peaks.seconds(one.flops, one.bytes) for one in cost.kernels]
    head = ["#", *head, "least time", "share"]
    for i, (row, seconds) in enumerate(zip(rows, times, strict=True)):
        share = f"{seconds / sum(times):.1%}" if sum(times) else "-"
        rows[i] = [str(first + i), *row, duration(seconds), share]
    total = ["", *total, duration(sum(times)), ""]
    return Table(tuple(head), (*map(tuple, rows), tuple(total)), left=3, summed=True)


def _cost_row(cost: KernelCost) -> list[str]:
    return [
        one_line(cost.kernel.name),
        one_line(cost.kernel.op),
        str(cost.launches),
        f"{cost.items:,}",
        decimal(cost.flops),
        size(cost.bytes),
        _ratio(cost.flops, cost.bytes),
    ]


def _ratio(flops: int, moved: int) -> str:
    return f"{flops / moved:.2f}" if moved else "-"


def _roof(peaks: Peaks) -> str:
    return (
        "Measured just now on this machine, with numpy on all cores: copies moved "
        f"{decimal(peaks.bandwidth)}B/s,"
        f" float32 matrix products did {decimal(peaks.flops)}FLOP/s. Left of {peaks.ridge:.1f} "
        "FLOP/byte a kernel waits for memory. Each kernel stands at its bound, not at a measured "
        "speed; the larger its circle, the larger its share of the step; numbers are those of the "
        "tables, from 2 % of a step on; kernels without arithmetic are left out."
    )


def _schedules(kernels: tuple[Kernel, ...]) -> list[Line]:
    lines: list[Line] = []
    for kernel in kernels:
        lines.append(Line(one_line(f"{kernel.name}: {kernel.op}"), hanging=4, code=True))
        for label, text in (("FLOPs", kernel.flops), ("bytes", kernel.bytes),
                            ("items", kernel.items)):  # fmt: skip
            lines.append(Line(f"{label} = {one_line(text)}", indent=4, hanging=8, code=True))
        steps = [one_line(step) for step in kernel.schedule.splitlines() if step.strip()]
        lines += [Line(step, indent=6, hanging=4, code=True) for step in steps]
    return lines


def _memory(manifest: Manifest, context: int, *, charts: bool) -> Section:
    kv, window = manifest.kv_cache, max(0, manifest.model.context_window_size)
    threads = usable_cores()
    empty = memory_plan(manifest, 0, threads)  # the only place that checks the page's sizes
    pages = -(-window // kv.page_size)
    plan = memory_plan(manifest, pages, threads)
    rows = (
        ("weights", size(plan.weights)),
        (f"KV cache of one window ({window:,} tokens, {pages:,} pages)", size(plan.kv_cache)),
        ("arena", size(plan.arena)),
        (f"scratch of {threads} threads", size(plan.scratch)),
        ("inputs and outputs", size(plan.io)),
        ("total", size(plan.total)),
    )
    parts: list[Part] = [
        Table(("purpose", "bytes"), rows, summed=True),
        Table(("KV cache", "bytes"), _kv_rows(manifest, context)),
        Table(("entry", "arena", "buffers", "scratch a thread"), tuple(
            (one_line(e.name), size(e.arena_bytes), str(len(e.arena)), size(e.scratch_bytes))
            for e in manifest.entries)),
    ]  # fmt: skip
    if charts:
        parts.append(Chart(memory_bars(manifest, empty), "Memory by the number of cached tokens"))
    if charts and any(entry.arena for entry in manifest.entries):
        largest = max(manifest.entries, key=lambda entry: entry.arena_bytes)
        caption = (
            f"The arena of {one_line(largest.name)}: each buffer at its place, from the "
            "launch that first names it to the last, or to the end of a repeat that reads it "
            "each time"
        )
        parts.append(Chart(arena_map(largest), caption))
    return Section("Memory", tuple(parts))


def _kv_rows(manifest: Manifest, context: int) -> tuple[tuple[str, str], ...]:
    kv, states = manifest.kv_cache, manifest.states
    if kv.recurrent:
        return (("the state of a sequence, of any length", size(kv.page_bytes)),)
    beside = () if states is None else (("states beside it, a sequence", size(states.slot_bytes)),)
    return (
        *beside,
        ("a token", size(kv.bytes_per_token)),
        (f"a page of {kv.page_size} tokens", size(kv.page_bytes)),
        (f"a context of {context:,} tokens", size(-(-context // kv.page_size) * kv.page_bytes)),
    )


def _weights(manifest: Manifest, *, charts: bool) -> Section:
    tensors = (
        StoredTensor(param.name, dtype(param.dtype), param.shape, packed_bytes(param))
        for param in manifest.params
    )
    weights = weights_of(tensors, manifest.model.quantization, {})
    parts: list[Part] = [
        Line("Bytes in memory, as the kernels read them; packed weights count in whole groups."),
        by_scheme(weights),
        by_group(weights),
    ]
    if charts:
        parts.append(Chart(weight_bars(weights), "Bytes of each group, over its bytes in fp16"))
    return Section("Weights", tuple(parts))
