"""Greedy tokens chosen on devices are those of the definition, whatever edits and masks say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance import TARGETS, target_named
from run_kernel import RunningKernels

from sterna.base.artifact import Launch
from sterna.codegen.renderer import RenderedKernel
from sterna.program import KernelTable, build_largest
from sterna.runtime.sampling import NONE, SampleInput, sample_rows

VOCAB, IDS = 2500, 2490  # logits a row, of which the last are padding
ROWS = 5


def asked(seed: int, ids: list[Any]) -> SampleInput:
    """Greedy rows in some order; `ids` are those that each row edits."""
    rng = np.random.default_rng(seed)
    count = sum(map(len, ids))
    edits = rng.normal(0, 2, (count, 4)).astype(np.float32)
    edits[:, 1:3] = rng.choice([1, 1 / 1.3, 0.7], (count, 2))
    edits[::50, 3] = np.inf
    return SampleInput(
        vocabulary=IDS,
        rows=rng.permutation(ROWS).astype(np.int32),
        inverse_temperature=np.zeros(ROWS, np.float32),
        limits=np.tile(np.array([0, 1 << 16, 1], np.int32), (ROWS, 1)),
        keys=np.zeros((ROWS, 5), np.uint32),
        masked=rng.integers(0, 2, ROWS).astype(np.int32),
        allowed=rng.integers(0, 2**32, (ROWS, -(-VOCAB // 32)), dtype=np.uint32),
        edit_indptr=np.cumsum([0, *map(len, ids)]).astype(np.int32),
        edit_ids=np.concatenate(ids).astype(np.int32),
        edits=edits,
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
    return [*found, (logits_of(9), barred)]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_first_largest(name: str) -> None:
    device = TARGETS[name]()
    table = KernelTable(target_named(name))
    entry = build_largest(VOCAB, ROWS, table)
    code = {t: RenderedKernel(k.func, k.source) for t, k in table.kernels.items()}
    running = RunningKernels(code, table.target, device)
    for logits, given in cases():
        dims = {"r": ROWS, "e": len(given.edit_ids), "v": IDS}
        arrays: dict[str, Any] = {"logits": logits, "sampled": np.full(ROWS, -7, np.int32)}
        for step in entry.steps:
            assert isinstance(step, Launch)
            for p in table.kernels[step.kernel].func.params:
                if p.name in ("x", "tops"):
                    shape = (ROWS, *(int(d.value) for d in p.shape[1:]))  # type: ignore[attr-defined]
                    held = arrays.get(p.name, np.zeros(shape, p.dtype.numpy))
                    arrays[p.name] = held.view(p.dtype.numpy)
                elif p.name not in arrays:
                    arrays[p.name] = getattr(given, p.name)
            own = {p.name: arrays[p.name] for p in table.kernels[step.kernel].func.params}
            arrays |= running.run(step.kernel, own, dims)
        wanted = sample_rows(logits, given)
        assert arrays["sampled"].tolist() == wanted.tolist()
        assert NONE in wanted  # each case has a row of no numbers
    device.close()
