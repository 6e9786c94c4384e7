"""The schedule language: frozen steps over stage names and axis names.

A stage is one Compute of a Group, called by the name of the buffer it defines; the axes of a
stage are its loops, outermost first. A Schedule is a tuple of steps: it prints, compares,
replays, and is what rules write and a tuner searches. Each step keeps the meaning of the Group or
`apply` raises ScheduleError with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

LINE_BYTES = 64  # of a cache line


@dataclass(frozen=True, slots=True)
class Step:
    """One decision about one stage."""

    stage: str
    name: ClassVar[str] = ""

    def __str__(self) -> str:
        values = (getattr(self, f.name) for f in fields(self))
        shown = (" ".join(v) if isinstance(v, tuple) else str(v) for v in values)
        return f"{type(self).__name__.lower()}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Split(Step):
    """for i in E  ->  for outer in ceil(E / factor): for inner in factor.

    i = outer * factor + inner. Where factor does not divide E the last iterations are guarded.
    """

    axis: str
    outer: str
    inner: str
    factor: int


@dataclass(frozen=True, slots=True)
class Fuse(Step):
    """for a in A: for b in B  ->  for into in A * B, for adjacent loops."""

    a: str
    b: str
    into: str


@dataclass(frozen=True, slots=True)
class Reorder(Step):
    """Put the named loops in this order, in the places that they hold now.

    Reduction loops keep their order among themselves: it is part of the meaning.
    """

    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parallel(Step):
    """Iterations of the outermost loop become work items, run by any thread or work group."""

    axis: str


@dataclass(frozen=True, slots=True)
class Thread(Step):
    """Iterations are threads of a work group; the extent must be a number.

    Two such loops directly inside each other make a group of two dimensions.
    """

    axis: str


@dataclass(frozen=True, slots=True)
class Vectorize(Step):
    """The innermost loop runs as SIMD operations."""

    axis: str


@dataclass(frozen=True, slots=True)
class Unroll(Step):
    """The loop is written out; its extent must be a number."""

    axis: str


@dataclass(frozen=True, slots=True)
class Tensorize(Step):
    """Loop `axis` and all inside it are one thread's part in an operation of the matrix unit.

    The stage sums products of two stages of whole numbers in f16, and its sums stay below 2**24:
    they are exact in f32, whatever order the unit adds in. Or its order is the unit's by meaning
    (`UNIT_SUM`). Or its sums are integers. Nothing else is left to it.
    """

    axis: str


@dataclass(frozen=True, slots=True)
class Pad(Step):
    """A row of the stage's region along `axis` takes `by` elements more, which nothing reads.

    So neighbours in a column lie in different banks of shared memory.
    """

    axis: str
    by: int


@dataclass(frozen=True, slots=True)
class Inline(Step):
    """Substitute the stage's body into its readers; no storage. Not for reductions."""


@dataclass(frozen=True, slots=True)
class At(Step):
    """Compute the stage inside loop `axis` of stage `of`, only the region needed there.

    The region is kept in memory `scope`: "register", "local", "scratch", or "shared" by a work
    group; for an output of the group "global", its own place.
    """

    of: str
    axis: str
    scope: str = "register"


@dataclass(frozen=True, slots=True)
class DoubleBuffer(Step):
    """Two regions of the stage are kept, and each turn of its loop makes the next turn's.

    The first is made before the loop. In a turn the threads compute their elements of the next
    region into registers, do what the turn does with the present one, and then store them where
    the turn before read. So what they load is on its way meanwhile, and they wait for each other
    once a turn instead of twice. For a stage that is no sum, kept in "shared" inside a loop that
    no threads run.
    """


@dataclass(frozen=True, slots=True)
class Ahead(Step):
    """Each turn of loop `axis` asks for what the turn `turns` later reads of an input or a stage.

    `buffer` names it, or a stage that is kept in memory. Of loops inside `axis` that add up and are
    not unrolled, the first turn's elements are asked for; of the others all, a cache line at a
    time. Along the vectorized one they must lie side by side.
    """

    axis: str
    buffer: str
    turns: int


@dataclass(frozen=True, slots=True)
class CacheRead(Step):
    """A turn of loop `axis` first reads into registers what the loops inside it want of an input.

    `buffer` names the input. What is wanted of a row of it is read in vectors of `lanes` elements,
    each of which begins at a multiple of `lanes` in the buffer: shown from the indices, or refused.
    """

    axis: str
    buffer: str
    lanes: int


@dataclass(frozen=True, slots=True)
class Skip(Step):
    """A turn of loop `axis` does nothing where its elements lie past the tensor.

    But the turn of a tile's first elements, which are there. For tiles larger than what is left of
    a tensor: nobody reads what they would compute.
    """

    axis: str


@dataclass(frozen=True, slots=True)
class Version(Step):
    """The sums of the stage are written twice: for the first turn of loop `axis`, and for all.

    Which is run is decided before them, by whether the second turn's elements are the tensor's. So
    a row by itself costs what it costs where there is never another. Turns after the second are
    computed with it, though nobody reads what lies past the tensor. The loop stands inside the
    sum's. What is made inside these sums and decided by the same is not decided again.
    """

    axis: str


@dataclass(frozen=True, slots=True)
class Hold(Step):
    """What loop `axis` adds up is in registers meanwhile: read before the loop, stored after it.

    For sums whose storage is too large for registers. The loop is a reduction's, and the loops
    inside it say which elements are held.
    """

    axis: str


Schedule = tuple[Step, ...]


def to_text(schedule: Schedule) -> str:
    """One step a line."""
    return "\n".join(str(step) for step in schedule)
