"""The functions kernels call: errors against numpy in f64, one value for every width."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from sterna.base.target import Target, host_target, parse_target
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library

Array = NDArray[Any]
WIDTHS = (1, 4, 8, 16)
UNARY = {
    **{f"{f}_f32": ("f32", "f32") for f in ("exp", "log", "tanh", "sin", "cos", "floor", "sqrt")},
    "abs_f32": ("f32", "f32"), "f32_from_f16": ("u16", "f32"), "f16_from_f32": ("f32", "u16"),
    "f32_from_bf16": ("u16", "f32"), "bf16_from_f32": ("f32", "u16"), "abs_i32": ("i32", "i32"),
}  # fmt: skip
BINARY = {
    **{f"{op}_{kind}": (kind, kind) for op in ("min", "max") for kind in ("f32", "i32", "u32")},
    "floor_div": ("i32", "i32"), "floor_mod": ("i32", "i32"),
}  # fmt: skip
NUMPY = {"f32": np.float32, "u16": np.uint16, "i32": np.int32, "u32": np.uint32}
Maps = Callable[..., Array]


def source() -> str:
    """For every function and width an exported loop over arrays."""
    parts = [pool_source(), prelude(WIDTHS)]
    for table, takes in ((UNARY, "x"), (BINARY, "xy")):
        for name, (source_type, target) in table.items():
            for lanes in WIDTHS:
                suffix = "" if lanes == 1 else f"x{lanes}"
                memory = "" if lanes == 1 else f"x{lanes}u"
                params = ", ".join(f"const {source_type} *{p}" for p in takes)
                values = ", ".join(f"*(const {source_type}{memory} *)({p} + i)" for p in takes)
                head = f"EXPORT void map_{name}_{lanes}({params}, {target} *r, i64 n)"
                parts.append(
                    f"{head};\n{head} {{ for (i64 i = 0; i < n; i += {lanes}) "
                    f"*({target}{memory} *)(r + i) = {name}{suffix}({values}); }}"
                )
    return "\n".join(parts)


def build(target: Target, folder: Path, cc: str | None = None) -> Maps:
    path = folder / f"math{target.suffix}"
    compile_library(source(), target, path, cc=cc)
    library = ctypes.CDLL(str(path))

    def run(name: str, lanes: int, *arrays: Array) -> Array:
        kinds = UNARY.get(name) or BINARY[name]
        assert arrays[0].size % max(WIDTHS) == 0
        given = [np.ascontiguousarray(a, NUMPY[kinds[0]]) for a in arrays]
        out = np.empty(given[0].shape, NUMPY[kinds[1]])
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*given, out)]
        getattr(library, f"map_{name}_{lanes}")(*pointers, ctypes.c_int64(out.size))
        return out

    return run


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    return build(host_target(), tmp_path_factory.mktemp("math"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """The same for an x86-64 without fma and half conversions."""
    if not host_target().triple.startswith("x86_64"):
        pytest.skip("needs a machine with an x86-64 processor")
    system = host_target().spec.rsplit("-", 1)[1]
    target = parse_target(f"cpu:x86-64-v2-{system}")
    return build(target, tmp_path_factory.mktemp("plain"))


def bits(values: Array) -> Array:
    return values.view({2: np.uint16, 4: np.uint32}[values.itemsize])


def every_kind_of_float() -> Array:
    rng = np.random.default_rng(1)
    anything = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    ordinary = rng.normal(0, 8, 1 << 15).astype(np.float32)
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 8388607.5, -8388607.5]
    special += [88.72283, 88.72284, -87.33654, -87.4, 2.0**31, -(2.0**31), 1e-45, 65504, 65520]
    return np.concatenate([anything, ordinary, np.resize(np.float32(special), 64)])


def halves_and_between() -> Array:
    """Every half, the middle to the next one, and the floats around both."""
    exact = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = bits(exact) + np.uint32(0x1000)
    near = [bits(exact) + np.uint32(1), bits(exact) - np.uint32(1), middle, middle + np.uint32(1)]
    return np.concatenate([exact, *(b.view(np.float32) for b in (*near, middle - np.uint32(1)))])


def ulps(found: Array, exact: Array) -> float:
    """The largest error in units of the last place of the exact value."""
    with np.errstate(over="ignore"):
        unit = np.spacing(np.maximum(np.abs(exact.astype(np.float32)), np.float32(1.2e-38)))
    return float(np.max(np.abs(found.astype(np.float64) - exact) / unit))


def span(low: float, high: float) -> Array:
    return np.linspace(low, high, 1 << 18).astype(np.float32)


@pytest.mark.parametrize("which", ["maps", "plain"])
def test_errors_against_f64(which: str, request: pytest.FixtureRequest) -> None:
    run: Maps = request.getfixturevalue(which)
    x = span(-87.33, 88.72)
    assert ulps(run("exp_f32", 8, x), np.exp(x.astype(np.float64))) < 1.1
    x = np.exp(span(-87, 88))
    assert ulps(run("log_f32", 8, x), np.log(x.astype(np.float64))) < 1.0
    x = np.concatenate([span(-12, 12), span(-0.7, 0.7), span(-1e-5, 1e-5)])
    assert ulps(run("tanh_f32", 8, x), np.tanh(x.astype(np.float64))) < 2.0
    for name, exact in (("sin_f32", np.sin), ("cos_f32", np.cos)):
        for reach in (1.0, 10.0, 4096.0, 131072.0):
            x = span(-reach, reach)
            error = np.abs(run(name, 8, x) - exact(x.astype(np.float64)))
            assert error.max() < 1.5e-7, (name, reach)
        x = np.arange(131072, dtype=np.float32)
        assert np.abs(run(name, 8, x) - exact(x.astype(np.float64))).max() < 1.5e-7


def test_sine_and_cosine_next_to_multiples_of_half_pi(maps: Maps) -> None:
    """Where the argument cancels most."""
    centre = (np.arange(1, 83445) * (np.pi / 2)).astype(np.float32)[: 83444 // 16 * 16]
    for shift in (-1, 0, 1):
        x = (bits(centre) + np.uint32(shift & 0xFFFFFFFF)).view(np.float32)
        for name, exact in (("sin_f32", np.sin), ("cos_f32", np.cos)):
            assert np.abs(maps(name, 16, x) - exact(x.astype(np.float64))).max() < 1.5e-7


@pytest.mark.parametrize("which", ["maps", "plain"])
def test_special_values(which: str, request: pytest.FixtureRequest) -> None:
    run: Maps = request.getfixturevalue(which)

    def one(name: str, *values: float) -> float:
        return float(run(name, 8, *(np.full(16, v, np.float32) for v in values))[3])

    nan, inf = float("nan"), float("inf")
    for name in ("exp", "log", "tanh", "floor", "sqrt", "abs"):
        assert np.isnan(one(f"{name}_f32", nan)), name
    assert (one("exp_f32", -inf), one("exp_f32", 0.0), one("exp_f32", inf)) == (0.0, 1.0, inf)
    assert (one("exp_f32", 88.8), one("exp_f32", 1e38), one("exp_f32", -1e38)) == (inf, inf, 0.0)
    assert (one("tanh_f32", inf), one("tanh_f32", -inf), one("tanh_f32", 0.0)) == (1.0, -1.0, 0.0)
    assert (one("log_f32", 0.0), one("log_f32", inf), one("log_f32", 1.0)) == (-inf, inf, 0.0)
    assert np.isnan([one("log_f32", -1.0), one("sqrt_f32", -1.0)]).all()
    for op in ("min_f32", "max_f32"):
        assert np.isnan([one(op, nan, 1.0), one(op, 1.0, nan)]).all()
    x = every_kind_of_float()
    with np.errstate(all="ignore"):
        assert np.array_equal(bits(run("abs_f32", 8, x)), bits(np.abs(x)))
        for name, exact in (("floor_f32", np.floor), ("sqrt_f32", np.sqrt)):
            found, right = run(name, 8, x), exact(x)
            assert np.array_equal(found, right, equal_nan=True)
            assert np.array_equal(np.signbit(found[right == 0]), np.signbit(right[right == 0]))


@pytest.mark.parametrize("which", ["maps", "plain"])
def test_every_width_gives_the_same_bits(which: str, request: pytest.FixtureRequest) -> None:
    run: Maps = request.getfixturevalue(which)
    floats = every_kind_of_float()
    ints = floats.view(np.int32)
    small = np.where(np.isfinite(floats) & (np.abs(floats) < 2e5), floats, np.float32(0.5))
    halves = np.arange(1 << 16, dtype=np.uint16)
    given = {"f32": floats, "u16": halves, "i32": ints, "u32": bits(floats)}
    for name, (kind, _) in UNARY.items():
        x = small if name in ("sin_f32", "cos_f32") else given[kind]
        one = bits(run(name, 1, x))
        for lanes in WIDTHS[1:]:
            assert np.array_equal(one, bits(run(name, lanes, x))), (name, lanes)
    for name, (kind, _) in BINARY.items():
        x, y = given[kind], np.roll(given[kind], 5)
        y = np.where((y == 0) | (y == -1), 7, y) if name.startswith("floor") else y
        one = bits(run(name, 1, x, y))
        for lanes in WIDTHS[1:]:
            assert np.array_equal(one, bits(run(name, lanes, x, y))), (name, lanes)


@pytest.mark.parametrize("which", ["maps", "plain"])
def test_half_conversions_are_those_of_numpy(which: str, request: pytest.FixtureRequest) -> None:
    run: Maps = request.getfixturevalue(which)
    halves = np.arange(1 << 16, dtype=np.uint16)
    exact = halves.view(np.float16).astype(np.float32)
    for lanes in WIDTHS:
        assert np.array_equal(run("f32_from_f16", lanes, halves), exact, equal_nan=True)
        found = run("f32_from_bf16", lanes, halves)
        assert np.array_equal(bits(found), halves.astype(np.uint32) << 16)
    x = np.concatenate([halves_and_between(), every_kind_of_float()])
    with np.errstate(all="ignore"):
        expected = {"f16": x.astype(np.float16), "bf16": x.astype(ml_dtypes.bfloat16)}
    number = ~np.isnan(x)
    for kind, values in expected.items():
        for lanes in WIDTHS:
            found = run(f"{kind}_from_f32", lanes, x)
            assert np.array_equal(found[number], bits(values)[number]), (kind, lanes)
            assert np.isnan(found[~number].view(values.dtype)).all()


def test_halves_in_software_are_those_in_hardware(maps: Maps, plain: Maps) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(
        bits(maps("f32_from_f16", 8, halves)), bits(plain("f32_from_f16", 8, halves))
    )
    x = np.concatenate([halves_and_between(), every_kind_of_float()])
    assert np.array_equal(maps("f16_from_f32", 8, x), plain("f16_from_f32", 8, x))


def test_integer_division_rounds_down(maps: Maps) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(-99, 99, (2, 1 << 12)).astype(np.int32)
    y[y == 0] = 3
    for lanes in WIDTHS:
        assert np.array_equal(maps("floor_div", lanes, x, y), x // y)
        assert np.array_equal(maps("floor_mod", lanes, x, y), x % y)
