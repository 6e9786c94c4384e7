"""Tokens chosen on devices are those of the definition, whatever limits, edits and masks say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conformance import TARGETS, target_named
from run_kernel import RunningKernels

from sterna.base.artifact import Entry, Launch
from sterna.base.sizes import evaluate
from sterna.codegen.renderer import RenderedKernel
from sterna.ir.evaluate import evaluate_primfunc
from sterna.ir.rewrite import free_vars
from sterna.program import KernelTable, build_chooser
from sterna.runtime.sampling import NONE, SampleInput, sample_rows

VOCAB, IDS = 2500, 2490  # logits a row, of which the last are padding
ROWS = 5
WHOLE = 1 << 16
UNIT = 1 << 30


def asked(seed: int, ids: list[Any], count: int = IDS) -> SampleInput:
    """Greedy rows in some order; `ids` are those that each row edits."""
    rng, rows = np.random.default_rng(seed), len(ids)
    many = sum(map(len, ids))
    edits = rng.normal(0, 2, (many, 4)).astype(np.float32)
    edits[:, 1:3] = rng.choice([1, 1 / 1.3, 0.7], (many, 2))
    edits[::50, 3] = np.inf
    words = -(-VOCAB // 32) if count == IDS else -(-count // 32)
    return SampleInput(
        vocabulary=count,
        rows=rng.permutation(rows).astype(np.int32),
        inverse_temperature=np.zeros(rows, np.float32),
        limits=np.tile(np.array([0, WHOLE, 1], np.int32), (rows, 1)),
        keys=rng.integers(0, 2**32, (rows, 5), dtype=np.uint32),
        masked=rng.integers(0, 2, rows).astype(np.int32),
        allowed=rng.integers(0, 2**32, (rows, words), dtype=np.uint32),
        edit_indptr=np.cumsum([0, *map(len, ids)]).astype(np.int32),
        edit_ids=np.concatenate(ids).astype(np.int32),
        edits=edits,
    )


def drawn(seed: int, given: SampleInput) -> SampleInput:
    """The same rows with temperatures, most of them, and limits of every kind."""
    rng, rows = np.random.default_rng(seed), len(given.rows)
    inverse = rng.choice([0, 1e-30, 0.3, 1, 4, 1e30], rows, p=[0.1, 0.1, 0.2, 0.3, 0.2, 0.1])
    limits = np.stack(
        [
            rng.choice([0, 1, 2, 40, 1000, IDS, 2**31 - 1], rows),
            rng.choice([0, 1, 30000, 58982, WHOLE - 1, WHOLE], rows),
            rng.choice([1, 1 << 10, 1 << 26, UNIT], rows, p=[0.5, 0.2, 0.2, 0.1]),
        ],
        axis=1,
    )
    return replace(
        given, inverse_temperature=inverse.astype(np.float32), limits=limits.astype(np.int32)
    )


def logits_of(seed: int) -> Any:
    """Rows of which one has many equal logits, one no number and one zeros of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 4, (ROWS, VOCAB))
    x[0] = np.round(x[0] / 4)
    x[1, rng.integers(IDS)] = rng.choice([np.nan, np.inf])
    x[2] = np.where(rng.random(VOCAB) < 0.5, -0.0, 0.0)
    x[:, IDS:] = 100
    return x.astype(np.float32)


def cases() -> list[tuple[Any, SampleInput]]:
    rng = np.random.default_rng(3)
    none: list[Any] = [np.zeros(0, np.int32)] * ROWS
    some = [rng.choice(IDS, n, replace=False) for n in (0, 7, 0, 300, 1)]
    found = [(logits_of(i), asked(i, some if i % 2 else none)) for i in range(4)]
    barred = asked(9, none)
    barred.masked[:], barred.allowed[:] = 1, 0
    drawing = [(logits_of(i), drawn(i, asked(i, some if i % 3 else none))) for i in range(10, 22)]
    return [*found, (logits_of(9), barred), *drawing]


class Chooser:
    """The kernels of a target, run by its device."""

    def __init__(self, name: str) -> None:
        self.device = TARGETS[name]()
        self.table = KernelTable(target_named(name))
        self.entry = build_chooser(VOCAB, ROWS, self.table)
        code = {t: RenderedKernel(k.func, k.source) for t, k in self.table.kernels.items()}
        self.running = RunningKernels(code, self.table.target, self.device)

    def tokens(self, logits: Any, given: SampleInput) -> list[int]:
        dims = dims_of(given)
        arrays = memory(self.entry, logits, given)
        for step in self.entry.steps:
            assert isinstance(step, Launch)
            params = self.table.kernels[step.kernel].func.params
            own = {p.name: arrays[p.name].view(p.dtype.numpy) for p in params}
            arrays |= self.running.run(step.kernel, own, dims)
        found: list[int] = arrays["sampled"].tolist()
        return found


def dims_of(given: SampleInput) -> dict[str, int]:
    drawing = int(given.inverse_temperature.any())
    return {"r": len(given.rows), "e": len(given.edit_ids), "v": given.vocabulary, "d": drawing}


def memory(entry: Entry, logits: Any, given: SampleInput) -> dict[str, Any]:
    """Every array that the kernels take; what they fill holds something else before."""
    dims = dims_of(given)
    arrays: dict[str, Any] = {"logits": logits, "sampled": np.full(dims["r"], -7, np.int32)}
    for buffer in entry.arena:
        shape = tuple(evaluate(extent, dims) for extent in buffer.shape)
        arrays[buffer.name] = np.full(shape, 0xFF123456, np.uint32)
    for buffer in entry.inputs[1:]:
        arrays[buffer.name] = getattr(given, buffer.name)
    return arrays


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_tokens_are_those_of_the_definition(name: str) -> None:
    chooser = Chooser(name)
    seen: set[int] = set()
    for logits, given in cases():
        wanted = sample_rows(logits, given).tolist()
        assert chooser.tokens(logits, given) == wanted, given
        seen.update(wanted)
    assert NONE in seen
    assert len(seen) > 30
    chooser.device.close()


def test_the_kernels_mean_that_in_numpy_as_well() -> None:
    """Two blocks of a vocabulary; the interpreter takes what no target would forgive."""
    count, rng = 300, np.random.default_rng(1)
    table = KernelTable(target_named("webgpu:barrier-free"))
    entry = build_chooser(count, 1, table)
    given = asked(4, [rng.choice(count, 5, replace=False)], count)
    given = replace(
        given,
        inverse_temperature=np.ones(1, np.float32),
        limits=np.array([[40, 58982, 1 << 10]], np.int32),
    )
    logits = np.round(rng.normal(0, 2, (1, count))).astype(np.float32)
    arrays, dims = memory(entry, logits, given), dims_of(given)
    for step in entry.steps:
        assert isinstance(step, Launch)
        func = table.kernels[step.kernel].func
        own = {p.name: arrays[p.name].view(p.dtype.numpy) for p in func.params}
        known = {*func.dims, *(v for p in func.params for d in p.shape for v in free_vars(d))}
        evaluate_primfunc(func, own, {v: dims.get(v.name, 1) for v in known})
    assert arrays["sampled"].tolist() == sample_rows(logits, given).tolist()
