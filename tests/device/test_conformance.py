"""The conformance matrix: each kernel's source runs on each target as its loop program says.

The loop program itself, compiled for this CPU with every thread loop run as a loop, gives what is
expected, to the bit: the order of every operation is part of a kernel's meaning. A target that does
not promise a fused multiply-add must come close; the simulator of SPIR-V has one.

With STERNA_CONFORMANCE=FILE in the environment the results are written there as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "codegen"))

from conformance import (
    SCHEMES,
    SUBGROUPS,
    TARGETS,
    TOKENS,
    Case,
    cases,
    rendered,
    target_named,
    with_subgroups,
)
from kernel_arrays import Arrays, arguments
from kernel_library import KernelLibrary
from run_kernel import RunningKernels
from spirv_device import SpirvDevice, simulated_vulkan

Expected = Callable[[Case, int], tuple[Arrays, Arrays, dict[str, int]]]


@cache
def found_for(table: str) -> list[Case]:
    """Targets whose schedules come from one table have the same cases."""
    return cases(next(t for t in map(target_named, TARGETS) if t.table == table))


@cache
def expected_for(table: str) -> Expected:
    """Arguments of a case, and the arrays after its loop program, run on the CPU."""
    library = KernelLibrary([c.func for c in found_for(table)])
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
@pytest.mark.parametrize("name", TARGETS)
def test_every_kernel(name: str, report: dict[str, dict[str, str]]) -> None:
    target = target_named(name)
    device = TARGETS[name]()
    found, expected = found_for(target.table), expected_for(target.table)
    kernels = rendered(found, target)
    running = RunningKernels(kernels, target, device)
    wrong = []
    for case in (c for c in found if c.name in kernels):
        for tokens in TOKENS:
            before, after, dims = expected(case, tokens)
            got = running.run(case.name, before, dims)
            same = same_bits if target.fma or isinstance(device, SpirvDevice) else close
            differ = [p for p, array in after.items() if not same(got[p], array)]
            wrong += [f"{case.name} with {tokens} tokens: {differ}"] * bool(differ)
            equal = all(same_bits(got[p], array) for p, array in after.items())
            verdict = "wrong" if differ else "equal to the bit" if equal else "close"
            report.setdefault(name, {})[f"{case.name} @ {tokens}"] = verdict
    device.close()
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vulkan", "vulkan:f32"])
def test_the_simulator_of_spirv(name: str) -> None:
    """One kernel of each operator and schedule has the bits that drivers only come close to."""
    target = target_named(name)
    found, expected = found_for(target.table), expected_for(target.table)
    chosen = list({(c.op, c.schedule): c for c in found}.values())
    kernels = rendered(chosen, target)
    running = RunningKernels(kernels, target, simulated_vulkan(target))
    for case in (c for c in chosen if c.name in kernels):
        before, after, dims = expected(case, 3)
        got = running.run(case.name, before, dims)
        assert all(same_bits(got[p], array) for p, array in after.items()), case.name


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBGROUPS)
def test_subgroups_change_no_bit(name: str) -> None:
    """Kernels that hand values on in registers, against the same that look up what they need."""
    of, op = SUBGROUPS[name]
    target, plain = target_named(name), target_named(of)
    found = [c for c in found_for(target.table) if c.op == op]
    kernels = rendered(found, target)
    lanes = [k.rendered.launches[0].lanes for k in kernels.values()]
    assert set(lanes) <= {0, target.subgroup}
    assert lanes.count(0) <= len(SCHEMES), "logits of a vocabulary that is no multiple of four"
    assert op != "attention" or 0 not in lanes
    results = []
    for row, made in ((target, kernels), (plain, rendered(found, plain))):
        device = with_subgroups(TARGETS[plain.spec](), row.subgroup)
        running = RunningKernels(made, row, device)
        results.append({c.name: run_alone(running, c) for c in found if c.name in made})
        device.close()
    swapped, shared = results
    assert swapped.keys() == shared.keys() != set()
    assert all(
        same_bits(array, shared[title][p])
        for title, arrays in swapped.items()
        for p, array in arrays.items()
    )


def run_alone(running: RunningKernels, case: Case) -> Arrays:
    """The arrays after a case of 3 tokens."""
    arrays, dims = arguments(case.func, 3, single=case.single)
    return running.run(case.name, arrays, {d.name: v for d, v in dims.items()})


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
