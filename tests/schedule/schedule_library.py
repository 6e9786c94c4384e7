"""Scheduled Groups compiled into one shared library, and calls of them on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from schedule_groups import Array

from sterna.base.target import Target
from sterna.codegen.c import render
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.compute import Group
from sterna.ir.expr import const_value
from sterna.ir.loop import PrimFunc
from sterna.schedule.apply import apply
from sterna.schedule.steps import Schedule

_SCRATCH = 1 << 20
_SLACK = 256  # elements that may be read behind an array
_CANARY = 12345.0


@dataclass(frozen=True, slots=True)
class Library:
    """Compiled kernels by name."""

    handle: ctypes.CDLL
    funcs: dict[str, PrimFunc]

    def run(self, name: str, arrays: Mapping[str, Array], **dims: int) -> dict[str, Array]:
        """Outputs by name; fails when a kernel writes behind an output."""
        func = self.funcs[name]
        pool = np.zeros(512, np.int64)
        scratch = np.zeros(_SCRATCH + 64, np.uint8)
        pool.view(np.int32)[0] = 1
        pool[3], pool[4] = -(-scratch.ctypes.data // 64) * 64, _SCRATCH
        shapes = {
            p.name: tuple(
                int(c) if (c := const_value(d)) is not None else dims[d.name] for d in p.shape
            )
            for p in func.params
        }
        held = {}
        for p in func.params:
            flat = np.full(int(np.prod(shapes[p.name])) + _SLACK, _CANARY).astype(p.dtype.numpy)
            if p.name in arrays:
                flat[:-_SLACK] = arrays[p.name].reshape(-1)[: flat.size - _SLACK]
            held[p.name] = flat
        fields = [pool.ctypes.data, *(held[p.name].ctypes.data for p in func.params)]
        args = np.array([*fields, *(dims[d.name] for d in func.dims)], np.int64)
        getattr(self.handle, f"run_{name}")(ctypes.c_void_p(args.ctypes.data))
        outputs = {p.name: held[p.name] for p in func.params if p.name not in arrays}
        for flat in outputs.values():
            behind = flat[-_SLACK:].astype(np.float64)
            assert (behind == behind[-1]).all(), f"{name} wrote behind its output"
        return {n: flat[:-_SLACK].reshape(shapes[n]) for n, flat in outputs.items()}


def build(kernels: Mapping[str, tuple[Group, Schedule]], target: Target, folder: Path) -> Library:
    """One library with a function `run_<name>` for each scheduled Group."""
    funcs = {name: apply(group, schedule) for name, (group, schedule) in kernels.items()}
    parts, widths = [], set[int]()
    for name, func in funcs.items():
        source = render(func)
        widths |= source.widths
        assert source.name == name
        assert source.scratch_bytes <= _SCRATCH
        dims = "".join(f"    const i64 {d.name} = a->{d.name};\n" for d in func.dims)
        dims += "".join(f"    (void){d.name};\n" for d in func.dims)
        calls = "".join(
            f"    parallel(a->pool, {phase}, a, {items}, 1);\n"
            for phase, items in zip(source.phases, source.counts, strict=True)
        )
        parts += [
            source.text,
            f"EXPORT void run_{name}(const struct {name}_args *a);",
            f"EXPORT void run_{name}(const struct {name}_args *a) {{\n{dims}{calls}}}",
        ]
    text = "\n".join([pool_source(), prelude(widths), *parts])
    path = compile_library(text, target, folder / f"scheduled{target.suffix}")
    assert isinstance(path, Path)
    return Library(ctypes.CDLL(str(path)), funcs)
