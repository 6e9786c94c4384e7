"""The generalized delta rule and the shift by a token, compiled, and against their formulas.

`repeat_heads`, which gives heads that share keys or decays their own, is here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_library import Array, KernelLibrary

from sterna.base.dtype import F16, F32, I32, DType
from sterna.base.errors import InvalidIR
from sterna.convert.recurrence import WALKS
from sterna.ir.evaluate import evaluate_compute
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.graph import TensorType
from sterna.ir.loop import PrimFunc
from sterna.kernels.delta import Delta, delta_scan
from sterna.kernels.kv_cache import LAYER
from sterna.kernels.recurrence import States, token_shift
from sterna.ops import op

N, B, P, PAGES = (Var(name, lo=0) for name in ("tokens", "sequences", "entries", "pages"))
DIMS = (N, B, P, PAGES)
LENGTHS, TABLE = (11, 1, 4), (5, 2, 0)  # tokens of each sequence, and its page of seven
LAYERS, USED, OFFSET = 2, 1, 3


@dataclass(frozen=True)
class Case:
    """Sizes of a delta_scan, with the values that a work item takes side by side."""

    heads: int
    key: int
    value: int
    lanes: int = 16
    dtype: DType = F32

    @property
    def name(self) -> str:
        return f"delta_{self.heads}_{self.key}_{self.value}_{self.lanes}_{self.dtype}"

    @property
    def elements(self) -> int:
        return OFFSET + self.heads * self.key * self.value

    def draw(self) -> list[Array]:
        """q, k, v, w, a and b of all tokens; a is of length 1, w a decay."""
        rng, count = np.random.default_rng(self.key), sum(LENGTHS)
        q, k, b = rng.normal(0, 1, (3, count, self.heads, self.key))
        v = rng.normal(0, 1, (count, self.heads, self.value))
        w = rng.uniform(0.5, 1, k.shape)
        a = -k / np.linalg.norm(k, axis=-1, keepdims=True)
        return [
            x.reshape(count, -1).astype(self.dtype.numpy) for x in (q, k, v, w, a, b / self.key)
        ]


# Heads of RWKV-7 and of Qwen3-Next; with values that a vector does not divide; on work groups.
CASES = [
    Case(2, 64, 64), Case(1, 128, 128), Case(3, 8, 20), Case(3, 8, 20, 1), Case(2, 16, 32, 16, F16)
]  # fmt: skip
CHANNELS = 24


def states(elements: int) -> States:
    shape = (PAGES, wrap(LAYERS), wrap(1), wrap(1), wrap(elements))
    tables = ("seq_indptr", B + 1), ("positions", N), ("page_indptr", B + 1), ("page_table", P)
    return States(
        Buffer("cache", F32, shape), OFFSET, *(Buffer(n, I32, (size,)) for n, size in tables)
    )


def scan(case: Case) -> PrimFunc:
    widths = {"v": case.value, "out": case.value}
    buffers = [
        Buffer(name, case.dtype, (N, wrap(case.heads * widths.get(name, case.key))))
        for name in ("q", "k", "v", "w", "a", "b", "out")
    ]
    delta = Delta(*buffers, case.heads)
    return delta_scan(case.name, delta, states(case.elements), DIMS, case.lanes)


def shift(dtype: DType) -> PrimFunc:
    x, out = (Buffer(name, dtype, (N, wrap(CHANNELS))) for name in ("x", "out"))
    return token_shift(f"shift_{dtype}", x, out, states(OFFSET + CHANNELS), DIMS, 16)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([*map(scan, CASES), shift(F32), shift(F16)])


class Walk:
    """Steps of a kernel over one cache, which begins as whatever others left: NaNs."""

    def __init__(self, library: KernelLibrary, name: str, elements: int) -> None:
        self.library, self.func = library, library.funcs[name]
        self.cache = np.full((7, LAYERS, 1, 1, elements), np.nan, np.float32)

    def step(self, given: list[Array], parts: list[tuple[int, int, int]]) -> list[Array]:
        """Tokens first..end of sequence s for each (s, first, end) -> their rows of the result."""
        begins = np.cumsum([0, *LENGTHS])
        rows = [slice(begins[s] + first, begins[s] + end) for s, first, end in parts]
        taken = [np.concatenate([x[r] for r in rows]) for x in given]
        counts = [end - first for _, first, end in parts]
        indptr = np.cumsum([0, *counts]).astype(np.int32)
        out = np.full((sum(counts), self.width(given)), np.nan, given[0].dtype)
        where = [
            indptr,
            np.concatenate([np.arange(first, end, dtype=np.int32) for _, first, end in parts]),
            np.arange(len(parts) + 1, dtype=np.int32),
            np.array([TABLE[s] for s, _, _ in parts], np.int32),
        ]
        arrays = dict(zip(self.func.params, (*taken, out, self.cache, *where), strict=True))
        sizes = (sum(counts), len(parts), len(parts), len(self.cache), USED)
        dims = dict(zip((*DIMS, LAYER), sizes, strict=True))
        self.library.run(self.func.name, arrays, dims)
        return np.split(out, indptr[1:-1])

    def width(self, given: list[Array]) -> int:
        return given[2 if len(given) > 1 else 0].shape[1]


WHOLE = [(s, 0, count) for s, count in enumerate(LENGTHS)]


def in_float64(case: Case, given: list[Array]) -> list[Array]:
    """Results of each sequence, from the formula: S [heads, value, key]."""
    q, k, v, w, a, b = (x.astype(np.float64).reshape(len(x), case.heads, -1) for x in given)
    found = []
    for end, count in zip(np.cumsum(LENGTHS), LENGTHS, strict=True):
        s, rows = np.zeros((case.heads, case.value, case.key)), []
        for n in range(end - count, end):
            turned = np.einsum("hvk,hk->hv", s, a[n])
            s = s * w[n][:, None, :]
            s += np.einsum("hv,hk->hvk", turned, b[n]) + np.einsum("hv,hk->hvk", v[n], k[n])
            rows.append(np.einsum("hvk,hk->hv", s, q[n]).reshape(-1))
        found.append(np.array(rows))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_formula(library: KernelLibrary, case: Case) -> None:
    given = case.draw()
    walk = Walk(library, case.name, case.elements)
    close = 1e-4 if case.dtype == F32 else 1e-2
    for got, wanted in zip(walk.step(given, WHOLE), in_float64(case, given), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=close, atol=close)
    touched = walk.cache[list(TABLE), USED, 0, 0, OFFSET:]
    assert np.isfinite(touched).all()
    assert np.isnan(walk.cache).sum() == walk.cache.size - touched.size


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_steps_and_batches_do_not_matter(library: KernelLibrary, case: Case) -> None:
    given = case.draw()
    walk = Walk(library, case.name, case.elements)
    wanted, kept = walk.step(given, WHOLE), walk.cache.copy()
    single = Walk(library, case.name, case.elements)
    for s, count in reversed(list(enumerate(LENGTHS))):
        rows = [single.step(given, [(s, i, i + 1)])[0] for i in range(count)]
        assert np.concatenate(rows).tobytes() == wanted[s].tobytes()
    assert single.cache.tobytes() == kept.tobytes()
    mixed = [walk.step(given, [(2, 0, 3), (0, 0, 7)]), walk.step(given, [(0, 7, 11), (2, 3, 4)])]
    assert np.concatenate([mixed[0][1], mixed[1][0]]).tobytes() == wanted[0].tobytes()
    assert np.concatenate([mixed[0][0], mixed[1][1]]).tobytes() == wanted[2].tobytes()


def test_work_groups_have_the_bits_of_a_cpu(library: KernelLibrary) -> None:
    wide, narrow = CASES[2], CASES[3]
    steps = [Walk(library, c.name, c.elements).step(wide.draw(), WHOLE) for c in (wide, narrow)]
    for one, other in zip(*steps, strict=True):
        assert one.tobytes() == other.tobytes()


def test_the_gated_delta_rule_is_a_case(library: KernelLibrary) -> None:
    """As its paper has it: the state decays, and gives up what it has for k for a share of v."""
    case = CASES[0]
    q, k, v, *_ = (x.reshape(len(x), case.heads, -1) for x in case.draw())
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    rng = np.random.default_rng(1)
    g, beta = rng.uniform(0.3, 1, (2, len(q), case.heads, 1)).astype(np.float32)
    s, wanted = np.zeros((case.heads, case.key, case.value)), []
    for n in range(LENGTHS[0]):
        s = s * g[n][:, :, None]
        change = (v[n] - np.einsum("hkv,hk->hv", s, k[n])) * beta[n]
        s = s + k[n][:, :, None] * change[:, None, :]
        wanted.append(np.einsum("hkv,hk->hv", s, q[n]).reshape(-1))
    given = [x.reshape(len(x), -1) for x in (q, k, beta * v, g + 0 * k, -k, g * beta * k)]
    got = Walk(library, case.name, case.elements).step(given, [(0, 0, LENGTHS[0])])[0]
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda c: c.name)
def test_numpy_has_the_same(library: KernelLibrary, case: Case) -> None:
    """What conversion computes a model with."""
    given = case.draw()
    got = Walk(library, case.name, case.elements).step(given, WHOLE)[0]
    own = [x[: LENGTHS[0]] for x in given]
    rows, walked = WALKS["delta_scan"]
    assert rows == len(given)
    np.testing.assert_allclose(got, walked({"heads": case.heads}, own), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [F32, F16])
def test_a_shift_by_a_token(library: KernelLibrary, dtype: DType) -> None:
    x = np.random.default_rng(3).normal(0, 1, (sum(LENGTHS), CHANNELS)).astype(dtype.numpy)
    walk = Walk(library, f"shift_{dtype}", OFFSET + CHANNELS)
    ends = np.cumsum(LENGTHS)
    sequences = [x[end - count : end] for end, count in zip(ends, LENGTHS, strict=True)]
    wanted = [np.concatenate([0 * s[:1], s[:-1]]) for s in sequences]
    _, shifted = WALKS["token_shift"]
    for got, before, own in zip(walk.step([x], WHOLE), wanted, sequences, strict=True):
        np.testing.assert_array_equal(got, before)
        np.testing.assert_array_equal(shifted({}, [own]), before)
    halves = [walk.step([x], [(0, 0, 6)]), walk.step([x], [(2, 0, 1), (0, 6, 11)])]
    np.testing.assert_array_equal(np.concatenate([halves[0][0], halves[1][1]]), wanted[0])


def test_heads_are_repeated() -> None:
    rule, x = op("repeat_heads"), Buffer("x", F32, (wrap(2), wrap(6)))
    attrs = {"head_dim": 2, "times": 3}
    out = rule.infer((TensorType(x.shape, F32),), attrs)
    assert rule.compute is not None
    (compute,) = rule.compute("y", (x,), out, attrs)
    given = np.arange(12, dtype=np.float32).reshape(2, 6)
    found = evaluate_compute(compute, {x: given}, {})
    wanted = np.repeat(given.reshape(2, 3, 2), 3, axis=1).reshape(2, -1)
    np.testing.assert_array_equal(found, wanted)
    for bad in ({"head_dim": 4, "times": 3}, {"head_dim": 2, "times": 0}):
        with pytest.raises(InvalidIR, match="do not fill"):
            rule.infer((TensorType(x.shape, F32),), bad)


def types(elements: int, **widths: int) -> tuple[TensorType, ...]:
    usual = {"q": 32, "k": 32, "v": 48, "w": 32, "a": 32, "b": 32}
    rows = [TensorType((N, wrap(width)), F32) for width in {**usual, **widths}.values()]
    own = states(elements)
    tables = (own.seq_indptr, own.positions, own.page_indptr, own.page_table)
    return (*rows, *(TensorType(b.shape, b.dtype) for b in (own.cache, *tables)))


@pytest.mark.parametrize(
    ("attrs", "widths", "room", "told"),
    [
        ({"heads": 2, "offset": 0}, {"w": 2}, 768, "keys differ"),
        ({"heads": 3, "offset": 0}, {}, 768, "heads do not divide"),
        ({"heads": 0, "offset": 0}, {}, 768, "heads do not divide"),
        ({"heads": 2, "offset": 1}, {}, 768, "does not fit its page"),
        ({"offset": 0}, {}, 768, "heads must be an integer"),
    ],
)
def test_operands_that_do_not_fit(
    attrs: dict[str, int], widths: dict[str, int], room: int, told: str
) -> None:
    rule = op("delta_scan")
    rule.infer(types(768), {"heads": 2, "offset": 0})
    with pytest.raises(InvalidIR, match=told):
        rule.infer(types(room, **widths), attrs)
