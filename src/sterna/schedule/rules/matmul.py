"""Schedules for a Group headed by a matrix product with a weight stage.

In: a Group whose stages are `weight` [k, n], sums over k and one output [m, n] with its epilogue.
Out: steps. For a row or two (`matvec`) weights are read once and used at once; for a handful
(`skinny_matmul`) each is unpacked into a register for several rows; for many (`matmul`) a panel of
weights is unpacked once and used by all rows. All leave the order of each sum alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

from sterna.base.dtype import U32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Load, const_value
from sterna.ir.rewrite import free_vars, loads
from sterna.schedule.rules.packing import period, tile_rows, whole_periods
from sterna.schedule.rules.product import (
    MatmulKnobs,
    MatvecKnobs,
    Product,
    adds_bytes,
    most_rows,
)
from sterna.schedule.steps import (
    LINE_BYTES,
    Ahead,
    At,
    Hold,
    Inline,
    Parallel,
    Reorder,
    Schedule,
    Skip,
    Split,
    Step,
    Tensorize,
    Unroll,
    Vectorize,
    Version,
)


def block_bytes(found: Product, knobs: MatmulKnobs) -> int:
    """What a tile reads of the weight, in the dtype that is multiplied: its columns, all of k."""
    return _line_bytes(found, knobs) * int(const_value(found.weight.axes[0].extent) or 0)


def in_place(found: Product, knobs: MatmulKnobs) -> Buffer | None:
    """The input that is the weight, if tiles can read it where it is: a panel would be a copy.

    It lies in tiles, in the dtype that is multiplied, and a block takes whole cache lines of it.
    """
    weight, body = found.weight, found.weight.body
    k, n = (axis.var for axis in weight.axes)
    if not isinstance(body, Load) or body.dtype != weight.out.dtype:
        return None
    last = free_vars(body.index[-1])
    whole = _line_bytes(found, knobs) >= LINE_BYTES and n in last and k not in last
    return body.buffer if whole else None


def _line_bytes(found: Product, knobs: MatmulKnobs) -> int:
    """What a tile reads of the weight in one step of k."""
    return _columns(found, knobs) * found.weight.out.dtype.bytes


def matvec(found: Product, knobs: MatvecKnobs) -> Schedule:
    """parallel blocks of n { rows m { k or groups { registers of n } } }, weights inlined."""
    out, total, partial = found.out, found.total, found.partial
    row, n = out.axes[0].name, _names(out)
    knobs = replace(knobs, tokens=int(min(knobs.tokens, most_rows(found))))
    cut: tuple[Step, ...] = ()
    turn, each = row, tuple[str, ...]()
    if knobs.tokens > 1:
        turn, inside = f"{row}_tile", f"{row}_inside"
        cut = (Split(out.name, row, turn, inside, knobs.tokens), Unroll(out.name, inside))
        each = (inside,)
    steps: list[Step] = [
        Inline(found.weight.name),
        Split(out.name, n.axis, n.block, n.inside, _whole(found, _block(out, knobs))),
        Split(out.name, n.inside, n.register, n.lane, knobs.lanes),
        *cut,
        Reorder(out.name, (n.block, turn, *each, n.register, n.lane)),
        Parallel(out.name, n.block),
        *_annotate(out),
        At(total.name, out.name, turn, "register"),
    ]
    if partial is None:
        return (*steps, *_few_by_word(total, found.weight, knobs))
    return (
        *steps,
        *_sum(total, knobs.lanes),
        *((Version(total.name, total.axes[0].name),) if each else ()),
        _inside(partial, total),
        *_few_by_word(partial, found.weight, knobs),
        *_words_ahead(partial, found.weight, knobs, _block(out, knobs)),
    )


def _few_by_word(stage: Compute, weight: Compute, knobs: MatvecKnobs) -> tuple[Step, ...]:
    """A sum by words for each row of x, or for all of them, of which one has sums of its own."""
    if knobs.tokens == 1:
        return _sum_by_word(stage, weight, knobs)
    row = stage.axes[0].name
    return (*_sum_by_word(stage, weight, knobs, row), Version(stage.name, row))


def _words_ahead(
    stage: Compute, weight: Compute, knobs: MatvecKnobs | MatmulKnobs, rows: int
) -> tuple[Step, ...]:
    """Ask for packed words well before they are read: hardware stops at the end of a page."""
    codes = whole_periods(knobs.unroll, period(weight), stage.over[0].extent)
    words = next((n.buffer for n in loads(weight.body) if n.buffer.dtype == U32), None)
    if codes is None or words is None or not knobs.ahead:
        return ()
    turn = rows * words.dtype.bytes * codes // period(weight)
    return (
        Ahead(stage.name, f"{stage.over[0].name}_word", words.name, max(1, knobs.ahead // turn)),
    )


def skinny_matmul(found: Product, knobs: MatmulKnobs) -> Schedule:
    """parallel blocks of n { blocks of m { k or groups { registers } } }, weights inlined.

    Between a matvec, which unpacks a weight anew for each row, and a matmul, whose panel leaves
    the nearest cache and comes back: worth it while rows fill a few tiles only, where a panel
    would leave the next cache too, and where there is nothing to unpack.
    """
    return _skinny(found, knobs, _sum_by_word)


def skinny_tiles(found: Product, knobs: MatmulKnobs) -> Schedule:
    """As `skinny_matmul`, of bytes, two rows of x at once: see `Target.byte_tiles`."""
    return _skinny(found, knobs, _words_in_twos)


def _skinny(
    found: Product, knobs: MatmulKnobs, summed: Callable[..., tuple[Step, ...]]
) -> Schedule:
    """`summed`, like `_sum_by_word`: the loops of a sum inside a group."""
    total, partial = found.total, found.partial
    cut, loops = _parts(total, knobs)
    steps = (Inline(found.weight.name), *_tile(found, knobs), *cut)
    if partial is None:
        if in_place(found, knobs):
            return (*steps, *_tile_sum(found, total, knobs, *loops))
        return (*steps, *_sum_by_word(total, found.weight, knobs, *loops))
    within, rows = _parts(partial, knobs)
    return (
        *steps,
        *_sum(total, knobs.lanes, *loops),
        _inside(partial, total),
        *within,
        *summed(partial, found.weight, knobs, *rows),
        *_words_ahead(partial, found.weight, knobs, _columns(found, knobs)),
    )


def matmul(found: Product, knobs: MatmulKnobs) -> Schedule:
    """parallel blocks of n { unpack a panel; blocks of m { k { a tile of registers } } }."""
    return _matmul(found, knobs, lambda stage: _tile_sum(found, stage, knobs))


def matmul_tiles(found: Product, knobs: MatmulKnobs) -> Schedule:
    """As `matmul`, of bytes, two rows of x at once: see `Target.byte_tiles`."""

    def written_out(stage: Compute) -> tuple[Step, ...]:
        return _in_twos(stage, knobs, (stage.over[0].name,), (stage.axes[0].name,))

    return _matmul(found, knobs, written_out)


def _matmul(
    found: Product, knobs: MatmulKnobs, summed: Callable[[Compute], tuple[Step, ...]]
) -> Schedule:
    """`summed`: the loops of a sum inside a group."""
    if 0 < knobs.depth < int(const_value(found.weight.axes[0].extent) or 0):
        return _deep(found, knobs, summed)
    out, total, partial, weight = found.out, found.total, found.partial, found.weight
    panel = (At(weight.name, out.name, _names(out).block, "scratch"), *_panel(weight, knobs))
    if in_place(found, knobs):
        panel = (Inline(weight.name),)
    steps = (*_tile(found, knobs), *panel)
    if partial is None:
        return (*steps, *_tile_sum(found, total, knobs))
    return (
        *steps,
        *_sum(total, knobs.lanes),
        _inside(partial, total),
        *summed(partial),
    )


def _deep(
    found: Product, knobs: MatmulKnobs, summed: Callable[[Compute], tuple[Step, ...]]
) -> Schedule:
    """parallel blocks of n { rows of x { blocks of k { a panel; tiles of m { registers } } } }.

    Panels are as deep as `depth` says: one of a whole row of the weight would leave the nearer
    caches between two tiles. Sums wait in memory for the next panel, in the order they had. A
    weight that is read in place has such blocks of k as well, and no panel.
    """
    out, total, weight = found.out, found.total, found.weight
    m, n, k = total.axes[0].name, _names(total), total.over[0].name
    own, row = _names(out), out.axes[0].name
    block, tile, each, step = f"{k}_block", f"{m}_tile", f"{m}_inside", f"{k}_step"
    rows, inside = f"{row}_block", f"{row}_inside"
    count, partial = _panel_steps(found, knobs), found.partial
    cut, turns = ((), (step,)) if partial else _turns(total, step, count, knobs)
    steps = (
        Split(out.name, own.axis, own.block, own.inside, _whole(found, _columns(found, knobs))),
        Split(out.name, own.inside, own.register, own.lane, knobs.lanes),
        Split(out.name, row, rows, inside, knobs.tokens * max(1, knobs.rows // knobs.tokens)),
        Reorder(out.name, (own.block, rows, inside, own.register, own.lane)),
        Parallel(out.name, own.block),
        *_annotate(out),
        At(total.name, out.name, rows, "scratch"),
        Split(total.name, m, tile, each, knobs.tokens),
        Split(total.name, n.axis, n.register, n.lane, knobs.lanes),
        Split(total.name, k, block, step, count),
        *cut,
        Reorder(total.name, (block, tile, *turns, each, n.register, n.lane)),
        *(Unroll(total.name, loop) for loop in (*turns[1:], each)),
        *_annotate(total),
        Skip(total.name, tile),
        Hold(total.name, turns[0]),
    )
    panel = (At(weight.name, total.name, block, "scratch"), *_panel(weight, knobs))
    if in_place(found, knobs):
        panel = (Inline(weight.name),)
    if partial is None:
        return (*steps, *panel, *_ahead(found, total, turns, knobs))
    inner = At(partial.name, total.name, step, "register")
    return (*steps, *panel, inner, *summed(partial))


def _panel_steps(found: Product, knobs: MatmulKnobs) -> int:
    """Steps of the total's sum in a panel: as many as `depth` has, or fewer that divide all."""
    steps = int(const_value(found.total.over[0].extent) or 1)
    deep = int(const_value(found.weight.axes[0].extent) or 1)
    fit = max(1, steps * knobs.depth // deep)
    return next(count for count in range(min(fit, steps), 0, -1) if steps % count == 0)


def _tile(found: Product, knobs: MatmulKnobs) -> tuple[Step, ...]:
    """The output in tiles of registers, blocks of n in parallel; a tile's sums inside it."""
    out = found.out
    row, n = out.axes[0].name, _names(out)
    tile, each = f"{row}_tile", f"{row}_inside"
    return (
        Split(out.name, n.axis, n.block, n.inside, _whole(found, _columns(found, knobs))),
        Split(out.name, n.inside, n.register, n.lane, knobs.lanes),
        Split(out.name, row, tile, each, knobs.tokens),
        Reorder(out.name, (n.block, tile, each, n.register, n.lane)),
        Parallel(out.name, n.block),
        Unroll(out.name, each),
        *_annotate(out),
        At(found.total.name, out.name, tile, "register"),
    )


def _inside(partial: Compute, total: Compute) -> Step:
    """A group's sum is made where the sum over groups takes it up."""
    return At(partial.name, total.name, total.over[0].name, "register")


@dataclass(frozen=True, slots=True)
class _Names:
    """The loops that the axis n of a stage is split into."""

    axis: str
    block: str
    inside: str
    register: str
    lane: str


def _names(stage: Compute) -> _Names:
    n = stage.axes[1].name
    return _Names(n, f"{n}_block", f"{n}_inside", f"{n}_register", f"{n}_lane")


def _annotate(stage: Compute) -> tuple[Step, ...]:
    n = _names(stage)
    return (Unroll(stage.name, n.register), Vectorize(stage.name, n.lane))


def _sum(stage: Compute, lanes: int, *rows: str) -> tuple[Step, ...]:
    """A sum [m, n] over k with all accumulators at once: k { m { registers } }.

    `rows` names the loops over m where they are several.
    """
    n, k = _names(stage), stage.over[0].name
    rows = rows or (stage.axes[0].name,)
    return (
        Split(stage.name, n.axis, n.register, n.lane, lanes),
        Reorder(stage.name, (k, *rows, n.register, n.lane)),
        *(Unroll(stage.name, loop) for loop in rows),
        *_annotate(stage),
    )


def _tile_sum(found: Product, stage: Compute, knobs: MatmulKnobs, *rows: str) -> tuple[Step, ...]:
    """As `_sum`, a few steps of k in each turn, what later ones read of the weight asked for.

    A panel is near, but not in the nearest cache, and hardware alone brings it too late.
    """
    n, k = _names(stage), stage.over[0]
    rows = rows or (stage.axes[0].name,)
    cut, turns = _turns(stage, k.name, int(const_value(k.extent) or 1), knobs)
    return (
        Split(stage.name, n.axis, n.register, n.lane, knobs.lanes),
        *cut,
        Reorder(stage.name, (*turns, *rows, n.register, n.lane)),
        *(Unroll(stage.name, loop) for loop in (*turns[1:], *rows)),
        *_annotate(stage),
        *_ahead(found, stage, turns, knobs),
    )


def _words_in_twos(
    stage: Compute, weight: Compute, knobs: MatmulKnobs, *rows: str
) -> tuple[Step, ...]:
    """As `_sum_by_word`, for packed words."""
    k = stage.over[0]
    codes = whole_periods(knobs.unroll, period(weight), k.extent)
    if codes is None:
        return _in_twos(stage, knobs, (k.name,), rows)
    word, code = f"{k.name}_word", f"{k.name}_code"
    cut = Split(stage.name, k.name, word, code, gcd(codes, int(const_value(k.extent) or codes)))
    return (cut, *_in_twos(stage, knobs, (word, code), rows))


def _in_twos(
    stage: Compute, knobs: MatmulKnobs, turns: tuple[str, ...], rows: tuple[str, ...]
) -> tuple[Step, ...]:
    """The loops of a sum where two rows and two steps of k are one operation.

    Raises ScheduleError where rows or steps are odd, or rows no whole parts, and for anything but
    products of bytes.
    """
    n, (*outer, last), (*parts, row) = _names(stage), turns, rows
    part = knobs.part if 0 < knobs.part < knobs.tokens else knobs.tokens
    odd = part % 2 or knobs.tokens % part or int(const_value(stage.over[0].extent) or 1) % 2
    if odd or not adds_bytes(stage):
        raise ScheduleError(f"{stage.name} has no tiles of two rows of bytes and two steps of k")
    step, word, pair, each = f"{last}_two", f"{last}_of_two", f"{row}_two", f"{row}_of_two"
    return (
        Split(stage.name, n.axis, n.register, n.lane, knobs.lanes),
        Split(stage.name, last, step, word, 2),
        Split(stage.name, row, pair, each, 2),
        Reorder(stage.name, (*outer, step, *parts, pair, n.register, each, word, n.lane)),
        Tensorize(stage.name, each),
        *(Unroll(stage.name, loop) for loop in (step, *parts, pair, n.register, word)),
        Vectorize(stage.name, n.lane),
    )


def _turns(
    stage: Compute, loop: str, extent: int, knobs: MatmulKnobs
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """A loop over k cut into turns of `steps`, or of fewer that divide it; and the loops it is."""
    count = next(c for c in range(max(1, knobs.steps), 0, -1) if extent % c == 0)
    if count == 1:
        return (), (loop,)
    turn, each = f"{loop}_turn", f"{loop}_each"
    return (Split(stage.name, loop, turn, each, count),), (turn, each)


def _ahead(
    found: Product, stage: Compute, turns: tuple[str, ...], knobs: MatmulKnobs
) -> tuple[Step, ...]:
    """Ask for a panel, or for a weight that is read in place, `ahead` bytes before it is read."""
    if not knobs.ahead:
        return ()
    placed = in_place(found, knobs)
    source = found.weight.name if placed is None else placed.name
    steps = max(1, knobs.ahead // _line_bytes(found, knobs))
    return (Ahead(stage.name, turns[-1], source, steps),)


def _parts(stage: Compute, knobs: MatmulKnobs) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """How the rows of a tile are cut into parts that may be skipped, and the loops over them."""
    m = stage.axes[0].name
    if not 0 < knobs.part < knobs.tokens:
        return (), (m,)
    part, row = f"{m}_part", f"{m}_row"
    return (Split(stage.name, m, part, row, knobs.part), Skip(stage.name, part)), (part, row)


def _sum_by_word(
    stage: Compute, weight: Compute, knobs: MatvecKnobs | MatmulKnobs, *rows: str
) -> tuple[Step, ...]:
    """A sum that reads packed words, a few at a time: each code of all registers in turn.

    `rows` names the loops over rows where a tile has several, for whom a code is unpacked once.
    With a `turn` of several codes the sums are not lanes of a register: each takes so many at once.
    """
    n, k = _names(stage), stage.over[0]
    codes = whole_periods(knobs.unroll, period(weight), k.extent)
    if codes is None:
        return _sum(stage, knobs.lanes, *rows)
    word, code = f"{k.name}_word", f"{k.name}_code"
    if knobs.turn > 1:
        turns = (f"{k.name}_turn", n.axis, *rows, code)
        return (
            Split(stage.name, k.name, word, f"{k.name}_codes", codes),
            Split(stage.name, f"{k.name}_codes", f"{k.name}_turn", code, min(knobs.turn, codes)),
            Reorder(stage.name, (word, *turns)),
            *(Unroll(stage.name, loop) for loop in turns),
        )
    return (
        Split(stage.name, n.axis, n.register, n.lane, knobs.lanes),
        Split(stage.name, k.name, word, code, codes),
        Reorder(stage.name, (word, code, *rows, n.register, n.lane)),
        *(Unroll(stage.name, loop) for loop in (code, *rows)),
        *_annotate(stage),
    )


def _panel(weight: Compute, knobs: MatmulKnobs) -> tuple[Step, ...]:
    """Unpack [k, n] in vectors along n; a word's codes are stored together."""
    k, n = weight.axes[0], _names(weight)
    steps: list[Step] = [Split(weight.name, n.axis, n.register, n.lane, knobs.lanes)]
    codes = whole_periods(knobs.unroll, period(weight), k.extent)
    if codes is None:
        return (*steps, *_annotate(weight))
    word, code = f"{k.name}_word", f"{k.name}_code"
    return (
        *steps,
        Split(weight.name, k.name, word, code, codes),
        Reorder(weight.name, (word, n.register, code, n.lane)),
        Unroll(weight.name, code),
        *_annotate(weight),
    )


def _block(out: Compute, knobs: MatvecKnobs) -> int:
    """Rows of the weight in a work item."""
    columns, rows = const_value(out.axes[1].extent), knobs.rows
    while columns is not None and rows > knobs.least_rows and columns < rows * knobs.items:
        rows //= 2
    return rows


def _columns(found: Product, knobs: MatmulKnobs) -> int:
    """Rows of the weight that a tile of registers covers: a work item's."""
    columns, vectors = const_value(found.out.axes[1].extent), knobs.vectors

    def too_wide(rows: int) -> bool:
        few = columns is not None and columns < rows * knobs.items
        return few or not _ends_with_tiles(found, rows)

    while vectors > 2 and vectors % 2 == 0 and too_wide(knobs.lanes * vectors):
        vectors //= 2
    return knobs.lanes * vectors


def _whole(found: Product, rows: int) -> int:
    """`rows`, if blocks of so many end where the weight's tiles of interleaved rows end.

    The last tile is padded; a block that reaches beyond would read what is not there.
    """
    if not _ends_with_tiles(found, rows):
        raise ScheduleError(
            f"blocks of {rows} rows do not divide tiles of {tile_rows(found.weight)}"
        )
    return rows


def _ends_with_tiles(found: Product, rows: int) -> bool:
    """Whether no block of so many rows reaches beyond the weight's last tile."""
    tile, columns = tile_rows(found.weight), const_value(found.weight.axes[1].extent)
    if tile is None or tile % rows == 0:
        return True
    return rows % tile == 0 and columns is not None and columns % rows == 0
