"""Schedules for targets with work groups: what a group computes, and which thread what of it.

In: a Group of any shape that the other rules know. Out: steps. Neighbouring threads read
neighbouring elements; sums keep their order, so what threads make for each other goes through
shared memory and is added up by one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

from sterna.base.dtype import U32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Axis, Compute, Group
from sterna.ir.expr import const_value
from sterna.ir.rewrite import loads
from sterna.schedule.cached import side_by_side, together
from sterna.schedule.rules.contraction import contraction
from sterna.schedule.rules.packing import period
from sterna.schedule.rules.product import Product, most_rows
from sterna.schedule.steps import (
    At,
    CacheRead,
    DoubleBuffer,
    Fuse,
    Inline,
    Parallel,
    Reorder,
    Schedule,
    Skip,
    Split,
    Step,
    Thread,
    Unroll,
    Version,
)


@dataclass(frozen=True, slots=True)
class GroupKnobs:
    """Numbers of a table.

    `threads` of a group without products. Products: `rows` of the weight are side by side in a
    group; with `few_rows` of x or fewer a group computes all of them, its threads sharing the
    scale groups `slices` ways, `chunk` at a time; with more, `tokens` of them in tiles of `each`
    a thread, and `depth` steps of k at a time where weights have no groups. `panels` of the weight
    are kept in shared memory: one, or two, of which the next is filled while one is multiplied.
    `lanes` rows of the weight are a thread's, where packed words of so many lie side by side: it
    reads them, and as many elements of x, at once, and `lanes` times as many threads share a scale
    group's neighbours. Of a panel's words a thread reads up to `lanes` at once, as many as are its.
    """

    few_rows: int
    threads: int
    rows: int
    slices: int
    chunk: int
    tokens: int
    each: int
    depth: int
    panels: int = 1
    lanes: int = 1


_SHARED_ROW = 8192  # bytes
_STEPS = 8  # of k that a thread reads a weight for at once, where it has no vectors of words

# Values worth trying of the knobs that matter to a rule.
FLAT_SPACE: Mapping[str, tuple[int, ...]] = {"threads": (32, 64, 128, 256)}
MATVEC_SPACE: Mapping[str, tuple[int, ...]] = {
    "rows": (16, 32, 64, 128),
    "slices": (1, 2, 4, 8, 16),
    "chunk": (4, 8, 16, 32),
}
MATMUL_SPACE: Mapping[str, tuple[int, ...]] = {
    "rows": (32, 64, 128),
    "tokens": (8, 16, 32, 64),
    "each": (1, 2, 4, 8),
    "depth": (16, 32, 64),
    "panels": (1, 2),
}


def elementwise_groups(group: Group, knobs: GroupKnobs) -> Schedule:
    """All elements in a row, cut into groups."""
    steps: list[Step] = [Inline(c.name) for c in group.computes if c.out not in group.outputs]
    for stage in group.computes:
        if stage.out in group.outputs:
            steps += _flat(stage, knobs.threads)
    return tuple(steps)


def _flat(stage: Compute, threads: int) -> list[Step]:
    if not stage.axes:
        return []
    names = [axis.name for axis in stage.axes]
    steps: list[Step] = []
    while len(names) > 1:
        fused = f"{names[-2]}_{names[-1]}"
        steps.append(Fuse(stage.name, names[-2], names[-1], fused))
        names[-2:] = [fused]
    flat = names[0]
    return [
        *steps,
        Split(stage.name, flat, f"{flat}_group", f"{flat}_thread", threads),
        Parallel(stage.name, f"{flat}_group"),
        Thread(stage.name, f"{flat}_thread"),
    ]


def contraction_groups(group: Group, knobs: GroupKnobs) -> Schedule:
    """All elements in a row, cut into groups; each thread makes the sums of its own."""
    found = contraction(group)
    if found is None:
        raise ScheduleError(f"{group.name} has no sums of this form")
    out, row, column = found.out.name, *(axis.name for axis in found.out.axes)
    sums = [c for c in (found.partial, found.total) if c is not None]
    flat, thread = f"{row}_{column}", f"{row}_{column}_thread"
    return (
        Fuse(out, row, column, flat),
        Split(out, flat, f"{flat}_group", thread, knobs.threads),
        Parallel(out, f"{flat}_group"),
        Thread(out, thread),
        *(At(stage.name, out, thread, "register") for stage in sums),
    )


def norm_groups(group: Group, knobs: GroupKnobs) -> Schedule:
    """A group for each row, all stages in it."""
    last = group.computes[-1]
    if last.out not in group.outputs or last.over:
        raise ScheduleError(f"{group.name}: its last stage {last.name!r} must be an output")
    row = last.axes[0].name
    steps: list[Step] = [*_along_width(last, knobs.threads), Parallel(last.name, row)]
    for stage in group.computes[:-1]:
        if _is_wide(stage) and not stage.over and stage.out not in group.outputs:
            steps.append(Inline(stage.name))
            continue
        scope = "global" if stage.out in group.outputs else "shared"
        steps.append(At(stage.name, last.name, row, scope))
        steps += _along_width(stage, knobs.threads)
    return tuple(steps)


def _is_wide(stage: Compute) -> bool:
    """Whether a row of it would take much of what a group shares: each reader computes it then."""
    size = stage.out.dtype.bytes
    for axis in stage.axes[1:]:
        size *= int(const_value(axis.extent) or 0)
    return size > _SHARED_ROW


def _along_width(stage: Compute, threads: int) -> list[Step]:
    """The threads side by side along the last axis, where there is one besides the rows.

    Where it is short, several of the axis before it are side by side too.
    """
    if len(stage.axes) < 2:
        return []
    h, width = stage.axes[-1].name, const_value(stage.axes[-1].extent)
    if width is not None and 2 * width <= threads and len(stage.axes) > 2:
        g = stage.axes[-2].name
        turn, thread = f"{g}_turn", f"{g}_thread"
        return [
            Split(stage.name, g, turn, thread, threads // int(width)),
            Reorder(stage.name, (thread, h, turn)),
            Thread(stage.name, thread),
            Thread(stage.name, h),
        ]
    if width is not None and width <= threads:
        return [Thread(stage.name, h)]
    turn, thread = f"{h}_turn", f"{h}_thread"
    return [
        Split(stage.name, h, turn, thread, threads),
        Reorder(stage.name, (thread, turn)),
        Thread(stage.name, thread),
    ]


def matvec_groups(found: Product, knobs: GroupKnobs) -> Schedule:
    """groups of rows of weight { slices of k side by side, all rows of x; their sums in order }.

    Weights are read, and unpacked, once for all rows. One row has sums of its own, lest it pay for
    those that are not there.
    """
    out, total, partial = found.out, found.total, found.partial
    m, n = out.axes[0].name, out.axes[1].name
    each = _each_of_few(found, knobs)
    steps: list[Step] = [
        Inline(found.weight.name),
        Split(out.name, n, f"{n}_block", f"{n}_thread", knobs.rows),
        Split(out.name, m, f"{m}_tile", f"{m}_inside", few_rows_tile(found, knobs)),
        Split(out.name, f"{m}_inside", f"{m}_thread", f"{m}_each", each),
        Reorder(out.name, (f"{n}_block", f"{m}_tile", f"{m}_thread", f"{n}_thread", f"{m}_each")),
        Fuse(out.name, f"{n}_block", f"{m}_tile", "group"),
        Parallel(out.name, "group"),
        Thread(out.name, f"{m}_thread"),
        Thread(out.name, f"{n}_thread"),
        At(total.name, out.name, "group", "register"),
    ]
    m, n = total.axes[0].name, total.axes[1].name
    steps += [
        Split(total.name, m, f"{m}_thread", f"{m}_each", each),
        Thread(total.name, f"{m}_thread"),
        Thread(total.name, n),
    ]
    if partial is None:
        return (*steps, *_by_steps(found, total, (f"{m}_thread", n), f"{m}_each"))
    g = total.over[0].name
    steps += [
        Split(total.name, g, f"{g}_chunk", f"{g}_inside", knobs.chunk),
        Reorder(total.name, (f"{g}_chunk", f"{m}_thread", n, f"{m}_each", f"{g}_inside")),
        Skip(total.name, f"{m}_each"),
        At(partial.name, total.name, f"{g}_chunk", "shared"),
    ]
    words = _words(found, knobs) if knobs.lanes > 1 else ()
    if words:
        return (*steps, *_by_vectors(found, partial, words, knobs))
    m, n, g = (axis.name for axis in partial.axes)
    return (
        *steps,
        Split(partial.name, g, f"{g}_turn", f"{g}_slice", knobs.slices),
        Thread(partial.name, f"{g}_slice"),
        Thread(partial.name, n),
        *_by_steps(found, partial, (f"{g}_slice", n, f"{g}_turn"), m),
    )


def few_rows_tile(found: Product, knobs: GroupKnobs) -> int:
    """Rows of x that a group of `matvec_groups` has: as many as there can be, or `few_rows`."""
    rows = int(min(most_rows(found), knobs.few_rows))
    return 1 << (rows - 1).bit_length()


def sums_bytes(found: Product, knobs: GroupKnobs) -> int:
    """What the sums of a chunk in `matvec_groups` take of the memory that a group shares."""
    if found.partial is None:
        return 0
    size = found.partial.out.dtype.bytes
    return few_rows_tile(found, knobs) * knobs.rows * knobs.chunk * size


def _each_of_few(found: Product, knobs: GroupKnobs) -> int:
    """Rows of x in which a thread adds up: few enough that all threads do, if sums are shared."""
    rows = few_rows_tile(found, knobs)
    return rows if found.partial is None else -(-rows // min(rows, knobs.slices))


def _by_steps(found: Product, stage: Compute, outer: tuple[str, ...], row: str) -> tuple[Step, ...]:
    """outer { some steps of k { what they read of the weight; steps { rows of x } } }."""
    k, read = stage.over[0], [load.buffer.name for load in loads(found.weight.body)]
    word, code = f"{k.name}_word", f"{k.name}_code"
    ragged = found.partial is not None and _ragged(found.weight, found.partial)
    once = () if ragged or len({*read}) < len(read) else read  # else compilers see to it
    return (
        Split(stage.name, k.name, word, code, _steps(found.weight, k)),
        Reorder(stage.name, (*outer, word, code, row)),
        *(Unroll(stage.name, loop) for loop in (code, row)),
        Version(stage.name, row),
        *(CacheRead(stage.name, word, buffer, 1) for buffer in once),
    )


def _steps(weight: Compute, k: Axis) -> int:
    """About `_STEPS` of k: whole words, where they end with the sum, else some that divide it."""
    extent, word = int(const_value(k.extent) or 1), period(weight)
    most = word * max(1, _STEPS // word) if extent % word == 0 else _STEPS
    return next(count for count in range(most, 0, -1) if extent % count == 0)


def _by_vectors(
    found: Product, partial: Compute, words: tuple[str, ...], knobs: GroupKnobs
) -> tuple[Step, ...]:
    """slices, rows side by side { words of k { rows of x { a vector of k { rows } } } }.

    As many codes are unpacked for all rows of x as these have elements in a vector.
    """
    name, (m, n, g) = partial.name, (axis.name for axis in partial.axes)
    k, codes = partial.over[0].name, _codes(found, partial, knobs)
    slices = min(knobs.chunk, knobs.slices * knobs.lanes)
    thread, lane = f"{n}_thread", f"{n}_lane"
    word, part, code = f"{k}_word", f"{k}_part", f"{k}_code"
    return (
        Split(name, n, thread, lane, knobs.lanes),
        Split(name, g, f"{g}_turn", f"{g}_slice", slices),
        Split(name, k, word, f"{k}_codes", codes),
        Split(name, f"{k}_codes", part, code, knobs.lanes),
        Reorder(name, (f"{g}_slice", thread, f"{g}_turn", word, part, m, code, lane)),
        Thread(name, f"{g}_slice"),
        Thread(name, thread),
        *(Unroll(name, loop) for loop in (word, part, m, code, lane)),
        Version(name, m),
        *(CacheRead(name, word, buffer, knobs.lanes) for buffer in words),
        *(CacheRead(name, m, x, knobs.lanes) for x in _rows_of_x(found, partial, knobs.lanes)),
    )


def _codes(found: Product, partial: Compute, knobs: GroupKnobs) -> int:
    """Steps of k whose codes fill whole words, and whose elements of x whole vectors."""
    return lcm(period(found.weight), knobs.lanes)


def _words(found: Product, knobs: GroupKnobs) -> tuple[str, ...]:
    """The inputs with packed words, if all can be read in vectors along the weight's rows."""
    partial, weight = found.partial, found.weight
    n, rows = weight.axes[1].var, const_value(weight.axes[1].extent)
    if partial is None or rows is None or int(rows) % knobs.lanes or knobs.rows % knobs.lanes:
        return ()
    words = [load for load in loads(weight.body) if load.buffer.dtype == U32]
    names = {load.buffer.name for load in words}
    whole = all(side_by_side(load, n, knobs.lanes) for load in words)
    group = int(const_value(partial.over[0].extent) or 0)
    short = _ragged(weight, partial) or group % _codes(found, partial, knobs) != 0
    if short or not whole or len(names) < len(words):
        return ()
    return tuple(names)


def _rows_of_x(found: Product, stage: Compute, lanes: int) -> tuple[str, ...]:
    """The other inputs of a sum that can be read in vectors along k."""
    k, extent = stage.over[0].var, const_value(stage.over[0].extent)
    others = [load for load in loads(stage.body) if load.buffer is not found.weight.out]
    times = Counter(load.buffer for load in others)
    if lanes == 1 or extent is None or int(extent) % lanes:
        return ()
    return tuple(
        load.buffer.name for load in others
        if times[load.buffer] == 1 and side_by_side(load, k, lanes)
    )  # fmt: skip


def matmul_groups(found: Product, knobs: GroupKnobs) -> Schedule:
    """groups of (rows of weight, tile of x) { a panel of weights shared; sums in registers }."""
    out, total, partial, weight = found.out, found.total, found.partial, found.weight
    m, n = out.axes[0].name, out.axes[1].name
    steps: list[Step] = [
        Split(out.name, n, f"{n}_block", f"{n}_thread", knobs.rows),
        Split(out.name, m, f"{m}_tile", f"{m}_inside", knobs.tokens),
        *_tokens(out, f"{m}_inside", knobs),
        Reorder(out.name, (f"{n}_block", f"{m}_tile", f"{m}_thread", f"{n}_thread", f"{m}_each")),
        Fuse(out.name, f"{n}_block", f"{m}_tile", "group"),
        Parallel(out.name, "group"),
        Thread(out.name, f"{m}_thread"),
        Thread(out.name, f"{n}_thread"),
        At(total.name, out.name, "group", "register"),
    ]
    k, depth = total.over[0].name, _panel_depth(found, knobs)
    if partial is not None:
        panel: tuple[Step, ...] = (
            At(weight.name, total.name, k, "shared"),
            *_panel(weight, depth, knobs),
        )
        read = _rows_of_x(found, partial, knobs.lanes) if _in_words(weight, depth, knobs) else ()
        if _ragged(weight, partial):  # the last panel would be smaller than the others
            panel, read = (Inline(weight.name),), ()
        i = partial.over[0].name
        return (
            *steps,
            *_sum(total, (k,), None, (), knobs),
            *panel,
            At(partial.name, total.name, k, "register"),
            *_sum(partial, (partial.axes[2].name,), i, read, knobs),
        )
    whole = _in_words(weight, depth, knobs) and depth % knobs.lanes == 0
    read = _rows_of_x(found, total, knobs.lanes) if whole else ()
    return (
        *steps,
        Split(total.name, k, f"{k}_block", f"{k}_inside", depth),
        *_sum(total, (f"{k}_block",), f"{k}_inside", read, knobs),
        At(weight.name, total.name, f"{k}_block", "shared"),
        *_panel(weight, depth, knobs),
    )


def panel_bytes(found: Product, knobs: GroupKnobs) -> int:
    """What one panel of `matmul_groups` takes of the memory that a group shares."""
    return _panel_depth(found, knobs) * knobs.rows * found.weight.out.dtype.bytes


def _panel_depth(found: Product, knobs: GroupKnobs) -> int:
    """Steps of k in a panel."""
    if found.partial is None:
        return knobs.depth
    return int(const_value(found.partial.over[0].extent) or 0)


def _ragged(weight: Compute, partial: Compute) -> bool:
    """Whether the groups of k do not fill its depth."""
    depth, group = const_value(weight.axes[0].extent), const_value(partial.over[0].extent)
    return depth is None or group is None or int(depth) % int(group) != 0


def _tokens(stage: Compute, axis: str, knobs: GroupKnobs) -> tuple[Step, ...]:
    m = stage.axes[0].name
    return (Split(stage.name, axis, f"{m}_thread", f"{m}_each", knobs.each),)


def _sum(
    stage: Compute,
    outer: tuple[str, ...],
    inner: str | None,
    read: tuple[str, ...],
    knobs: GroupKnobs,
) -> tuple[Step, ...]:
    """Each thread sums its own tile: outer { threads { inner { each } } }.

    What is `read` in vectors along `inner`: threads { vectors { each { lanes of inner } } }.
    """
    m, n = stage.axes[0].name, stage.axes[1].name
    each, vector, lane = f"{m}_each", f"{inner}_vector", f"{inner}_lane"
    inside = (vector, each, lane) if read else (each,) if inner is None else (inner, each)
    return (
        *_tokens(stage, m, knobs),
        *((Split(stage.name, inner, vector, lane, knobs.lanes),) if inner and read else ()),
        Reorder(stage.name, (*outer, f"{m}_thread", n, *inside)),
        Thread(stage.name, f"{m}_thread"),
        Thread(stage.name, n),
        *((Unroll(stage.name, loop) for loop in (each, lane)) if read else ()),
        *(CacheRead(stage.name, each, buffer, knobs.lanes) for buffer in read),
    )


def _in_words(weight: Compute, depth: int, knobs: GroupKnobs) -> bool:
    """Whether each thread has whole words of every panel; else words are unpacked by several."""
    threads = knobs.tokens // knobs.each
    filled = int(const_value(weight.axes[0].extent) or 1) % depth == 0
    return filled and depth % threads == 0 and depth // threads % period(weight) == 0


def _panel(weight: Compute, depth: int, knobs: GroupKnobs) -> tuple[Step, ...]:
    """The group's threads unpack a panel together, neighbours along the rows.

    A thread's words are read by no other, and up to `lanes` of them at once: those of one step of
    k, in neighbouring rows.
    """
    name, k, n = weight.name, weight.axes[0].name, weight.axes[1].name
    threads, thread, row = knobs.tokens // knobs.each, f"{k}_thread", f"{n}_thread"
    two = (DoubleBuffer(name),) if knobs.panels == 2 else ()
    if not _in_words(weight, depth, knobs):
        turn = f"{k}_turn"
        return (
            *two,
            Split(name, k, turn, thread, threads),
            Reorder(name, (thread, n, turn)),
            Thread(name, thread),
            Thread(name, n),
        )
    codes, own = period(weight), depth // threads
    lanes, read = _side_by_side(weight, knobs.rows, min(knobs.lanes, own // codes))
    word, code, lane = f"{k}_word", f"{k}_code", f"{n}_lane"
    return (
        *two,
        Split(name, k, thread, f"{k}_own", own // lanes),
        Split(name, f"{k}_own", word, code, codes),
        Split(name, n, row, lane, lanes),
        Reorder(name, (thread, row, word, code, lane)),
        Thread(name, thread),
        Thread(name, row),
        *(Unroll(name, loop) for loop in (word, code, lane)),
        *(CacheRead(name, word, buffer, lanes) for buffer in read),
    )


def _side_by_side(weight: Compute, rows: int, most: int) -> tuple[int, tuple[str, ...]]:
    """How many rows a thread reads at once, up to `most`, and of which inputs; 1 is of none."""
    lanes = 1 << (most.bit_length() - 1)
    while lanes > 1:
        if names := together(weight, weight.axes[1], rows, lanes):
            return lanes, names
        lanes //= 2
    return 1, ()
