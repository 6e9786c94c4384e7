"""Candidates of one kernel, built into one library.

In: a Group, plans, a target. Out: the library's bytes with an entry point for each plan, or why a
plan has none. It loads and runs nothing, so it can be done in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.base.artifact import FORMAT, Dim, Entry, KVCache, Launch, Manifest, Model
from sterna.base.artifact import Buffer as ManifestBuffer
from sterna.base.errors import CompileError
from sterna.base.target import Target
from sterna.base.version import __version__
from sterna.codegen.bundle import check_limits
from sterna.codegen.renderer import LibraryParts, renderer_of
from sterna.ir.compute import Group
from sterna.ir.expr import Buffer
from sterna.ir.loop import PrimFunc
from sterna.ir.rewrite import free_vars
from sterna.passes.cost import Cost
from sterna.program import KernelTable
from sterna.schedule.choose import Plan, planned

_NO_MODEL = Model("none", "none", "none", 0, 0, 0, 0)
_NO_CACHE = KVCache(0, 0, 0, 1, "f16", 0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """A library, the entry point of each plan in it, and what was wrong with the others.

    Plans are named by numbers that the caller chose.
    """

    library: bytes
    entries: Mapping[int, Entry]
    problems: Mapping[int, str]


def build(group: Group, plans: Mapping[int, Plan], target: Target) -> Candidates:
    """Build the plans that fit; CompileError where the compiler fails: it names none of them."""
    table = KernelTable(target)
    entries: dict[int, Entry] = {}
    problems: dict[int, str] = {}
    for i, plan in plans.items():
        try:
            _, func = planned(group, plan)
            _check_fits(func, target)
            kernel = table.add(func, f"candidate_{i}", "", Cost("0", "0"))
        except CompileError as error:
            problems[i] = str(error)
            continue
        scratch = table.kernels[kernel].source.scratch_bytes
        entries[i] = _entry(i, group, kernel, scratch)
    library = _library(table, tuple(entries.values()), target) if entries else b""
    return Candidates(library, entries, problems)


def _entry(index: int, group: Group, kernel: str, scratch: int) -> Entry:
    extents = (d for b in (*group.inputs, *group.outputs) for d in b.shape)
    dims = sorted({v for d in extents for v in free_vars(d)}, key=lambda v: v.name)
    return Entry(
        name=f"candidate_{index}",
        symbol=f"sterna_candidate_{index}",
        dims=tuple(Dim(v.name, v.lo or 0, v.hi or 0) for v in dims),
        inputs=tuple(_buffer(b) for b in group.inputs),
        outputs=tuple(_buffer(b) for b in group.outputs),
        arena=(),
        arena_bytes=0,
        scratch_bytes=scratch,
        steps=(Launch(kernel=kernel, args=tuple(b.name for b in (*group.inputs, *group.outputs))),),
    )


def _buffer(buffer: Buffer) -> ManifestBuffer:
    return ManifestBuffer(name=buffer.name, dtype=buffer.dtype.name, shape=())


def _library(table: KernelTable, entries: tuple[Entry, ...], target: Target) -> bytes:
    parts = LibraryParts(_manifest(table, entries, target), table.code(), {})
    return renderer_of(target).build_library([parts], target)


def _check_fits(func: PrimFunc, target: Target) -> None:
    """Raise where a candidate wants more than the target has; it would spoil the whole library."""
    alone = KernelTable(target)
    alone.add(func, "candidate", "", Cost("0", "0"))
    if target.group_threads:
        check_limits(LibraryParts(_manifest(alone, (), target), alone.code(), {}), target)


def _manifest(table: KernelTable, entries: tuple[Entry, ...], target: Target) -> Manifest:
    return Manifest(
        format=FORMAT, sterna=__version__, target=target.spec, features=target.features,
        model=_NO_MODEL, kv_cache=_NO_CACHE, params=(), entries=entries, kernels=table.manifest(),
        part_bytes=target.most_buffer_bytes if target.split_buffers else 0,
    )  # fmt: skip
