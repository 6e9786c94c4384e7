"""The conformance matrix: each kernel's source runs on each target as its loop program says.

The loop program itself, compiled for this CPU with every thread loop run as a loop, gives what is
expected, to the bit: the order of every operation is part of a kernel's meaning. A target that does
not promise a fused multiply-add must come close.

With STERNA_CONFORMANCE=FILE in the environment the results are written there as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "codegen"))

from conformance import TARGETS, TOKENS, Case, cases, rendered, target_named
from kernel_arrays import Arrays, arguments
from kernel_library import KernelLibrary
from run_kernel import RunningKernels

Expected = Callable[[Case, int], tuple[Arrays, Arrays, dict[str, int]]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> str:
    """Targets whose schedules come from one table have the same cases."""
    return str(request.param)


@pytest.fixture(scope="module")
def found(table: str) -> list[Case]:
    return cases(next(t for t in map(target_named, TARGETS) if t.table == table))


@pytest.fixture(scope="module")
def expected(found: list[Case]) -> Expected:
    """Arguments of a case, and the arrays after its loop program, run on the CPU."""
    library = KernelLibrary([c.func for c in found])
    known: dict[tuple[str, int], tuple[Arrays, Arrays, dict[str, int]]] = {}

    def get(case: Case, tokens: int) -> tuple[Arrays, Arrays, dict[str, int]]:
        if (case.name, tokens) not in known:
            arrays, dims = arguments(case.func, tokens, single=case.single)
            after = {p: arrays[p.name].copy() for p in case.func.params}
            library.run(case.name, after, dims)
            named = {p.name: array for p, array in after.items()}
            known[case.name, tokens] = arrays, named, {d.name: v for d, v in dims.items()}
        return known[case.name, tokens]

    return get


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, dict[str, str]]]:
    """Verdicts by target and kernel, written at the end where the environment says."""
    results: dict[str, dict[str, str]] = {}
    yield results
    wanted = os.environ.get("STERNA_CONFORMANCE")
    if wanted:
        Path(wanted).write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "name"),
    sorted((target_named(name).table, name) for name in TARGETS),
    indirect=["table"],
)
def test_every_kernel(
    name: str, found: list[Case], expected: Expected, report: dict[str, dict[str, str]]
) -> None:
    target = target_named(name)
    device = TARGETS[name]()
    kernels = rendered(found, target)
    running = RunningKernels(kernels, target, device)
    wrong = []
    for case in (c for c in found if c.name in kernels):
        for tokens in TOKENS:
            before, after, dims = expected(case, tokens)
            got = running.run(case.name, before, dims)
            same = same_bits if target.fma else close
            differ = [p for p, array in after.items() if not same(got[p], array)]
            wrong += [f"{case.name} with {tokens} tokens: {differ}"] * bool(differ)
            equal = all(same_bits(got[p], array) for p, array in after.items())
            verdict = "wrong" if differ else "equal to the bit" if equal else "close"
            report.setdefault(name, {})[f"{case.name} @ {tokens}"] = verdict
    device.close()
    assert not wrong, "\n".join(wrong)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:  # type: ignore[type-arg]
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def close(a: np.ndarray, b: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Floats within 1e-4 of the largest; everything else equal."""
    if a.dtype.kind in "iu":
        return np.array_equal(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    known = np.isfinite(y)
    bound = 1e-4 * max(1.0, float(np.abs(y[known]).max(initial=0.0)))
    return bool((np.abs(x - y)[known] <= bound).all())
