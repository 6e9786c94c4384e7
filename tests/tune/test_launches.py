"""Kernels that are launched one by one race on the devices that run them here."""

import random
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from sterna.base.dtype import F32
from sterna.base.errors import Unavailable, UsageError
from sterna.base.target import Target, parse_target
from sterna.ir.compute import SUM, Compute, Group, axis, elementwise
from sterna.ir.expr import Buffer, ExprLike, Load, Var, wrap
from sterna.runtime.devices import open_device
from sterna.schedule.choose import Plan, plan_of
from sterna.tune.build import build
from sterna.tune.database import Database, Row, here, tuned_plans
from sterna.tune.device_peaks import device_peaks
from sterna.tune.launches import LaunchRunner
from sterna.tune.propose import propose
from sterna.tune.race import Setup, race
from sterna.tune.space import can_tune, everything, features

ROWS, DEPTH = 80, 64
SIZES = {"n": 5}


WAITING = ("opencl", "vulkan", "webgpu")  # targets whose threads wait for each other


@pytest.fixture(scope="module", params=[*WAITING, "webgpu:barrier-free"])
def target(request: pytest.FixtureRequest) -> Target:
    found = parse_target(request.param)
    try:
        open_device(found.kind).close()
    except Unavailable as error:
        pytest.skip(str(error))
    return found


def buffer(name: str, shape: tuple[ExprLike, ...]) -> Buffer:
    return Buffer(name, F32, tuple(map(wrap, shape)))


def product() -> Group:
    """y[n, 80] = x[n, 64] times a weight, with the weight stage that rules look for."""
    n = Var("n", lo=1, hi=2048)
    x, w = buffer("x", (n, DEPTH)), buffer("w", (ROWS, DEPTH))
    weight = elementwise("weight", F32, (DEPTH, ROWS), "k j", lambda k, j: Load(w, (j, k)))
    m, j, k = axis("m", n), axis("j", ROWS), axis("k", DEPTH)
    body = Load(x, (m.var, k.var)) * Load(weight.out, (k.var, j.var))
    total = Compute(buffer("total", (n, ROWS)), (m, j), body, (k,), SUM)
    out = elementwise("out", F32, (n, ROWS), "a b", lambda a, b: Load(total.out, (a, b)))
    return Group("product", (x, w), (out.out,), (weight, total, out))


def raced(group: Group, plans: list[Plan], target: Target, folder: Path) -> list[float]:
    built = build(group, dict(enumerate(plans)), target)
    setup = Setup(target, 1, SIZES)
    with LaunchRunner([built], group, setup, folder) as runner:
        times = race(runner, sorted(built.entries))
    return [times[i].seconds if i in times else inf for i in range(len(plans))]


def test_plans_of_a_product_race(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sterna.tune.launches.ROUND_SECONDS", 0.003)
    monkeypatch.setattr("sterna.tune.race._RING_BYTES", 1 << 16)
    group = product()
    shipped = plan_of(group, target)
    assert can_tune(shipped)
    other = next(p for p in everything(shipped) if p != shipped and p.rule == shipped.rule)
    first, second = raced(group, [shipped, other], target, tmp_path)
    assert 0 < first < 1
    assert 0 < second < 1


def test_numbers_are_those_of_the_product(target: Target, tmp_path: Path) -> None:
    group = product()
    built = build(group, {0: plan_of(group, target)}, target)
    with LaunchRunner([built], group, Setup(target, 1, SIZES), tmp_path) as runner:
        found = np.frombuffer(runner.bits(0), np.float32)
        x, w = (np.empty(size, np.float32) for size in (5 * DEPTH, ROWS * DEPTH))
        for buffer, out in zip(runner.ring[0], (x, w), strict=True):
            runner.device.read(buffer, out)
    wanted = x.reshape(5, DEPTH).astype(np.float64) @ w.reshape(ROWS, DEPTH).T
    whole, odd = found[: 5 * ROWS].reshape(5, ROWS), found[5 * ROWS :].reshape(5, ROWS)
    np.testing.assert_allclose(whole, wanted, atol=1e-4)
    np.testing.assert_allclose(odd[:4], wanted[:4], atol=1e-4)
    assert not odd[4].any(), "rows beyond the size were written"


@pytest.mark.parametrize("target", WAITING, indirect=True)
def test_what_exceeds_the_target_is_refused_alone(target: Target) -> None:
    group = product()
    shipped = plan_of(group, target)
    huge = Plan("matmul_groups", replace(shipped.knobs, rows=1024, tokens=1024, each=1))
    built = build(group, {0: shipped, 1: huge}, target)
    assert set(built.entries) == {0}
    assert "threads in a group" in built.problems[1]


def test_proposals_stay_in_the_space(target: Target) -> None:
    shipped = plan_of(product(), target)
    draw, times = random.Random(3), {shipped: 1.0}
    for _ in range(3):
        plans = propose(shipped, times, 8, draw)
        assert set(plans) <= set(everything(shipped))
        assert len({len(features(p)) for p in plans}) == 1
        times |= {p: draw.random() for p in plans}


def test_plans_are_kept_by_the_device_s_name(target: Target, tmp_path: Path) -> None:
    database, shipped = Database(tmp_path / "plans.sqlite"), plan_of(product(), target)
    assert tuned_plans(target, pytest.fail, database) == {}
    where = here(target)
    database.add(where, [Row("a" * 64, "linear", shipped, 1e-3, True)])
    assert tuned_plans(target, pytest.fail, database) == {"a" * 64: shipped}
    assert where.device not in ("", "not here")


def test_a_device_that_is_not_here_keeps_what_is_imported(tmp_path: Path) -> None:
    target = parse_target("metal")
    if here(target).device != "not here":
        pytest.skip("this machine has one")
    shipped = plan_of(product(), target)
    database = Database(tmp_path / "plans.sqlite")
    database.add(here(target), [Row("a" * 64, "linear", shipped, 1e-3, True)])
    assert database.export(here(target), tmp_path / "plans.json") == 1
    other = Database(tmp_path / "other.sqlite")
    assert other.load(here(target), tmp_path / "plans.json") == 1
    assert tuned_plans(target, pytest.fail, other) == {"a" * 64: shipped}
    with pytest.raises(UsageError, match="plans for target metal"):
        other.load(here(parse_target("rocm")), tmp_path / "plans.json")


def test_a_device_has_peaks(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.tune.launches.ROUND_SECONDS", 0.003)
    monkeypatch.setattr("sterna.tune.device_peaks._COPIED", 1 << 16)
    peaks = device_peaks(target)
    assert 1e6 < peaks.bandwidth < 1e14
    assert 1e6 < peaks.flops < 1e16
