"""Entry points in C: the launch program of a step as one function, one call a step.

From the manifest's Entry (data that any runtime could interpret) and the rendered kernels. The
host passes pointers in a fixed order: inputs, outputs, the KV cache, then every param of the
manifest; layers' params lie one layer after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import KV_CACHE, Entry, Launch, Param, Repeat
from sterna.codegen.c import CSource, name

LAYER = "layer"
_RUN = "run"


@dataclass(frozen=True, slots=True)
class KernelCode:
    """A rendered kernel and the C names of its parameters and dims, in order."""

    source: CSource
    params: tuple[str, ...]
    dims: tuple[str, ...]


def constants_source(constants: Mapping[str, NDArray[np.float32]]) -> str:
    """Small arrays known at compile time, as C data with slack for vector tails."""
    lines = []
    for title, array in constants.items():
        values = ", ".join(f"{float(v).hex()}f" for v in array.ravel())
        size = array.size + 64
        lines.append(f"static f32 const_{name(title)}[{size}] = {{{values}}};")
    return "\n".join(lines)


def entry_source(
    entry: Entry,
    kernels: Mapping[str, KernelCode],
    params: tuple[Param, ...],
    constants: Mapping[str, NDArray[np.float32]],
) -> str:
    """The C function of one entry point."""
    writer = _EntryWriter(entry, kernels, params, constants)
    for step in entry.steps:
        writer.step(step)
    parameters = "Pool *pool, void *const *buffers, void *arena, const i64 *dims"
    head = [
        f"EXPORT i32 {entry.symbol}({parameters});",
        f"EXPORT i32 {entry.symbol}({parameters}) {{",
        "    u8 *mem = arena;",
        "    (void)mem, (void)buffers;",
    ]
    head += [f"    const i64 {d.name} = dims[{i}];" for i, d in enumerate(entry.dims)]
    head += [f"    (void){d.name};" for d in entry.dims]
    return "\n".join([*head, *writer.lines, "    return 0;", "}"])


class _EntryWriter:
    def __init__(
        self,
        entry: Entry,
        kernels: Mapping[str, KernelCode],
        params: tuple[Param, ...],
        constants: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.kernels = kernels
        self.constants = constants
        self.lines: list[str] = []
        first = (*entry.inputs, *entry.outputs)
        self.pointers = {b.name: f"buffers[{i}]" for i, b in enumerate(first)}
        self.pointers[KV_CACHE] = f"buffers[{len(first)}]"
        self.pointers |= {b.name: f"mem + {b.offset}" for b in entry.arena}
        self.first_param = len(first) + 1
        self.param_index = {p.name: i for i, p in enumerate(params)}

    def step(self, step: Launch | Repeat) -> None:
        if isinstance(step, Launch):
            self.launch(step, "    ", None)
            return
        self.lines.append(f"    for (i64 {_RUN} = 0; {_RUN} < {step.count}; {_RUN}++) {{")
        for launch in step.body:
            self.launch(launch, "        ", step)
        self.lines.append("    }")

    def launch(self, launch: Launch, indent: str, repeat: Repeat | None) -> None:
        code = self.kernels[launch.kernel]
        title = code.source.name
        first = launch.layer + (repeat.first if repeat else 0)
        row, stride = (first, repeat.stride if repeat else 0)
        if launch.row is not None:
            row, stride = launch.row, launch.row_stride
        layer = f"{row} + {_RUN} * {stride}" if repeat else str(row)
        values = [f".{p} = (void *)({self.pointer(a, first, repeat)})" for p, a in
                  zip(code.params, launch.args, strict=True)]  # fmt: skip
        values += [f".{d} = {layer if d == LAYER else d}" for d in code.dims]
        fields = ", ".join([".pool = pool", *values])
        self.lines.append(f"{indent}{{")
        self.lines.append(f"{indent}    const struct {title}_args a = {{{fields}}};")
        for phase, items in zip(code.source.phases, code.source.counts, strict=True):
            self.lines.append(f"{indent}    parallel(pool, {phase}, &a, {items}, 1);")
        self.lines.append(f"{indent}}}")

    def pointer(self, title: str, first: int, repeat: Repeat | None) -> str:
        """Where an argument lies; a layer's weight as far from the next run's in every run."""
        if title in self.pointers:
            return self.pointers[title]
        if title in self.constants:
            return f"const_{name(title)}"
        index = self.param_index[_at(title, first)]
        if "{i}" not in title or repeat is None or repeat.count < 2:
            return f"buffers[{self.first_param + index}]"
        distance = self.param_index[_at(title, first + repeat.stride)] - index
        return f"buffers[{self.first_param + index} + {_RUN} * {distance}]"


def _at(title: str, layer: int) -> str:
    return title.replace("{i}", str(layer))
