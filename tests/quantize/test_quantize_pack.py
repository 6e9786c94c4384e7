"""Packing and restoring weights: MLC's vectors, a narrow-float oracle, bounds, refusals."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, F32, F64, I32
from sterna.base.errors import MissingTensor, ShapeMismatch, UnsafeFile, UsageError
from sterna.quantize.codes import unpack_codes
from sterna.quantize.pack import cast, dequantize, packed_spec, quantize, restored_rows
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES, Scheme, scheme

Array = NDArray[Any]

GROUPED = [row for row in SCHEMES.values() if row.is_quantized]
EVERY = [*GROUPED, *MLC_SCHEMES.values()]
SYMMETRIC = [row for row in EVERY if not row.affine]
AFFINE = [row for row in EVERY if row.affine]


def ident(row: Scheme) -> str:
    return f"{row.name}-g{row.group}"


def random_weight(*shape: int, seed: int = 0, spread: float = 0.05) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def codes_of(packed: dict[str, Array], row: Scheme) -> Array:
    words = packed["q_weight"]
    if row.layout == "KN" and words.ndim == 2:
        words = words.T
    return unpack_codes(np.ascontiguousarray(words), row)


VECTORS = [
    (
        SCHEMES["q4f16_1"],
        "54443322 87776655 baaa9998 eeddcccb eeddddcc 00000000 00000000 00000000",
        "3125 336e",
    ),
    (MLC_SCHEMES["q3f16_1"], "1a492492 246db6db 2db24924 36db5b6d", "3855"),
    (
        SCHEMES["q4f32_1"],
        "54443322 87776655 baaa9998 eeddcccb eeddddcc 00000000 00000000 00000000",
        "3e249249 3e6db6db",
    ),
]


def hexes(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("row", "words", "scales"), VECTORS, ids=lambda v: getattr(v, "name", ""))
def test_mlc_vectors(row: Scheme, words: str, scales: str) -> None:
    weight = ((np.arange(40, dtype=np.float32) - 13) / 16)[None]
    packed = quantize(weight, row)
    assert packed["q_weight"].tolist() == [hexes(words)]
    bits = np.uint16 if row.compute == F16 else np.uint32
    assert packed["q_scale"].view(bits).tolist() == [hexes(scales)]


def oracle(weight: Array, row: Scheme) -> tuple[Array, Array]:
    """Codes and scales of one row by MLC's rule, every operation a narrow one of numpy's own."""
    dt = row.compute.numpy
    narrow = weight.astype(dt)
    codes, scales = [], []
    for start in range(0, narrow.size, row.group):
        group = narrow[start : start + row.group]
        scale = np.abs(group).max() / dt.type(row.bias)
        with np.errstate(all="ignore"):
            shifted = group / scale + dt.type(row.bias)
        code = np.clip(np.rint(shifted.astype(np.float32)), 0, 2 * row.bias)
        codes.append(np.nan_to_num(code, nan=0.0).astype(np.uint8))
        codes.append(np.zeros(row.group - group.size, np.uint8))
        scales.append(scale)
    return np.concatenate(codes), np.array(scales, dt)


@pytest.mark.parametrize("row", SYMMETRIC, ids=ident)
@pytest.mark.parametrize("spread", [3e-7, 1e-4, 0.05, 30.0])
@pytest.mark.parametrize("k", [13, 172, 2048])
def test_symmetric_is_narrow_arithmetic_bit_for_bit(row: Scheme, spread: float, k: int) -> None:
    weight = random_weight(5, k, seed=k, spread=spread)
    packed = quantize(weight, row)
    codes = codes_of(packed, row)
    scales = packed["q_scale"].T if row.layout == "KN" else packed["q_scale"]
    for i in range(len(weight)):
        wanted_codes, wanted_scales = oracle(weight[i], row)
        assert np.array_equal(codes[i], wanted_codes)
        assert scales[i].tobytes() == wanted_scales.tobytes()


@pytest.mark.parametrize("row", [SCHEMES["q4f16_1"], SCHEMES["q4bf16_1"]], ids=ident)
def test_restored_and_cast_is_narrow_arithmetic(row: Scheme) -> None:
    weight = random_weight(8, 96)
    packed = quantize(weight, row)
    dt = row.compute.numpy
    shifted = codes_of(packed, row).astype(dt) - dt.type(row.bias)
    wanted = shifted * np.repeat(packed["q_scale"], row.group, axis=1)
    restored = dequantize(packed, row, weight.shape).astype(dt)
    assert restored.tobytes() == wanted.tobytes()


def tolerance(row: Scheme, scale: Array) -> Array:
    """Half a step, and what narrow rounding adds: of the biased quotient, and of the scale."""
    ulps = {F16: 2.0**-11, BF16: 2.0**-9, F32: 2.0**-24}
    rounded = 2 * ulps[row.compute] + ulps[row.scale_on_disk if row.affine else row.compute]
    subnormal = 2.0**-25 if row.compute == F16 else 0.0  # f16 scales below 6e-5 lose precision
    return scale * 0.5 + (row.max_code + 1) * (scale * rounded + subnormal) + 1e-30


@pytest.mark.parametrize("row", EVERY, ids=ident)
@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 300),
    seed=st.integers(0, 999),
    shift=st.sampled_from([0.0, 0.3, -5.0]),
)
def test_error_is_at_most_half_a_step(row: Scheme, n: int, k: int, seed: int, shift: float) -> None:
    weight = random_weight(n, k, seed=seed, spread=0.1) + np.float32(shift)
    packed = quantize(weight, row)
    held = weight.astype(row.compute.numpy).astype(np.float32)
    scale = packed["q_scale"].astype(np.float32)
    steps = np.repeat(scale.T if row.layout == "KN" else scale, row.group, axis=1)[:, :k]
    off = np.abs(dequantize(packed, row, weight.shape) - held)
    assert (off <= tolerance(row, steps)).all()


@pytest.mark.parametrize("row", AFFINE, ids=ident)
@settings(derandomize=True, max_examples=15, deadline=None)
@given(data=st.data(), zero=st.integers(0, 7), exponent=st.integers(-8, 3))
def test_affine_is_exact_on_what_it_can_represent(
    row: Scheme, data: st.DataObject, zero: int, exponent: int
) -> None:
    codes = data.draw(
        st.lists(st.integers(0, row.max_code), min_size=row.group, max_size=row.group)
    )
    codes[0], codes[-1] = 0, row.max_code
    weight = np.float32(2.0**exponent) * (np.array([codes], np.float32) - zero)
    packed = quantize(weight, row)
    assert packed["q_zero"].tolist() == [[zero]]
    assert np.array_equal(codes_of(packed, row), [codes])
    assert np.array_equal(dequantize(packed, row, weight.shape), weight)


@pytest.mark.parametrize("row", AFFINE, ids=ident)
def test_affine_codes_are_made_for_the_scale_in_the_file(row: Scheme) -> None:
    scale = quantize(random_weight(8, 96), row)["q_scale"]
    assert scale.dtype == row.compute.numpy
    assert np.array_equal(scale.astype(row.scale_on_disk.numpy).astype(scale.dtype), scale)


@pytest.mark.parametrize("row", EVERY, ids=ident)
def test_zero_and_constant_groups(row: Scheme) -> None:
    weight = np.repeat(np.array([[0.0], [0.75], [-3.0]], np.float32), 2 * row.group, axis=1)
    weight[1, row.group :] = 0
    restored = dequantize(quantize(weight, row), row, weight.shape)
    assert not restored[weight == 0].any()
    assert np.allclose(restored, weight, rtol=2.0**-8, atol=0)


@pytest.mark.parametrize("row", EVERY, ids=ident)
def test_vanishing_weights_restore_to_about_zero(row: Scheme) -> None:
    weight = np.array([[1e-7, -1e-7, 6e-8, 0.0] * row.group], np.float32)
    restored = dequantize(quantize(weight, row), row, weight.shape)
    assert np.abs(restored).max() < 5e-7


@pytest.mark.parametrize("row", EVERY, ids=ident)
def test_groups_run_along_k_so_fusing_rows_changes_nothing(row: Scheme) -> None:
    a, b = random_weight(3, 172, seed=1), random_weight(2, 172, seed=2)
    axis = 1 if row.layout == "KN" else 0
    whole = quantize(np.concatenate([a, b]), row)
    parts = quantize(a, row), quantize(b, row)
    for key, value in whole.items():
        assert np.array_equal(value, np.concatenate([part[key] for part in parts], axis))


@pytest.mark.parametrize("row", EVERY, ids=ident)
def test_experts_are_stacked_matrices(row: Scheme) -> None:
    weight = random_weight(3, 4, 70)
    packed = quantize(weight, row)
    nk = row.for_kind("experts")
    for e in range(3):
        alone = quantize(weight[e], nk)
        assert all(np.array_equal(packed[key][e], alone[key]) for key in packed)
    assert dequantize(packed, row, weight.shape).shape == weight.shape


@pytest.mark.parametrize("row", EVERY, ids=ident)
def test_blocks_do_not_show(row: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(7, 100)
    whole = quantize(weight, row)
    restored = dequantize(whole, row, weight.shape)
    monkeypatch.setattr("sterna.quantize.pack._BLOCK", 200)
    small = quantize(weight, row)
    assert all(np.array_equal(whole[key], small[key]) for key in whole)
    assert [rows.stop for rows, _ in restored_rows(whole, row, weight.shape)] == [2, 4, 6, 7]
    assert np.array_equal(dequantize(small, row, weight.shape), restored)


@pytest.mark.parametrize("name", ["q4f16_1", "q3f16_1z", "q4f16_0", "q0f32"])
def test_memory_beside_the_result_is_a_few_blocks(name: str) -> None:
    weight = random_weight(1024, 2048).astype(np.float16)
    tracemalloc.start()
    packed = quantize(weight, scheme(name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - sum(t.nbytes for t in packed.values()) < 6e6


@pytest.mark.parametrize("row", SCHEMES.values(), ids=ident)
def test_measured_bytes_are_the_tables(row: Scheme) -> None:
    packed = quantize(random_weight(16, 4096), row)
    on_disk = {"q_scale": row.scale_on_disk}
    measured = sum(
        t.size * (on_disk[k].bytes if k in on_disk else t.itemsize) for k, t in packed.items()
    )
    assert measured * 32 / (16 * 4096) == row.bytes_for_32_weights


@pytest.mark.parametrize("row", SCHEMES.values(), ids=ident)
@pytest.mark.parametrize("shape", [(4, 172), (1, 1), (0, 32), (3, 0), (2, 3, 33)])
def test_spec_is_what_quantize_makes(row: Scheme, shape: tuple[int, ...]) -> None:
    packed = quantize(random_weight(*shape), row)
    spec = packed_spec(shape, row)
    assert {k: (t.shape, t.dtype) for k, t in packed.items()} == {
        k: (dims, dtype.numpy) for k, (dims, dtype) in spec.items()
    }
    assert dequantize(packed, row, shape).shape == shape


def test_kn_is_the_transpose_of_nk() -> None:
    weight, row = random_weight(5, 300), SCHEMES["q4f16_0z"]
    packed, nk = quantize(weight, row), quantize(weight, row.for_kind("embedding"))
    assert packed["q_weight"].shape == (3 * 16, 5)
    assert all(np.array_equal(packed[key], nk[key].T) for key in nk)


@pytest.mark.parametrize("source", [F16, BF16, F32, F64], ids=str)
def test_every_float_source_is_read(source: Any) -> None:
    weight = random_weight(4, 64).astype(BF16.numpy).astype(source.numpy)
    wanted = quantize(weight.astype(np.float32), SCHEMES["q4f16_1"])
    assert np.array_equal(quantize(weight, SCHEMES["q4f16_1"])["q_weight"], wanted["q_weight"])
    assert np.array_equal(quantize(weight, SCHEMES["q0f32"])["weight"], weight.astype(np.float32))


def test_sources_need_not_be_contiguous_or_writable() -> None:
    weight = random_weight(64, 6).T
    weight.flags.writeable = False
    wanted = quantize(np.ascontiguousarray(weight), SCHEMES["q4f32_1z"])
    for key, value in quantize(weight, SCHEMES["q4f32_1z"]).items():
        assert np.array_equal(value, wanted[key])


@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3), (2, 3, 4, 5)])
def test_cast_takes_any_rank(shape: tuple[int, ...]) -> None:
    weight = np.asarray(random_weight(*shape))
    out = cast(weight, BF16)
    assert out.shape == shape
    assert np.array_equal(out, weight.astype(BF16.numpy))


@pytest.mark.parametrize("row", SCHEMES.values(), ids=ident)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", [F16, BF16, F32, F64], ids=str)
def test_nan_and_infinite_weights(row: Scheme, bad: float, source: Any) -> None:
    weight = random_weight(4, 64).astype(source.numpy)
    weight[3, 63] = bad
    with pytest.raises(UnsafeFile, match=r"layers\.0\.up_proj holds NaN or infinite"):
        quantize(weight, row, name="layers.0.up_proj")


@pytest.mark.parametrize("name", ["q4f16_1", "q8f16_1z", "q0f16"])
def test_weights_beyond_f16(name: str) -> None:
    weight = random_weight(4, 64)
    weight[1, 2] = -1e5
    with pytest.raises(UsageError, match=r"up to 1e\+05, which f16 cannot hold; .*q4bf16_1"):
        quantize(weight, scheme(name))
    assert quantize(weight, scheme("q4bf16_1"))


def test_the_widest_range_does_not_overflow() -> None:
    weight = np.array([[3e38, -3e38] * 16], np.float32)
    row = SCHEMES["q4f32_1z"]
    assert np.allclose(dequantize(quantize(weight, row), row, weight.shape), weight, rtol=0.1)


def test_integers_are_not_weights() -> None:
    with pytest.raises(ShapeMismatch, match="dtype int32"):
        quantize(np.zeros((2, 32), I32.numpy), SCHEMES["q4f16_1"])


@pytest.mark.parametrize("shape", [(32,), (1, 2, 3, 32)])
def test_only_matrices_are_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="2 or 3 dimensions"):
        quantize(np.zeros(shape, np.float32), SCHEMES["q4f16_1"])


def test_tensors_that_are_not_this_weight() -> None:
    row = SCHEMES["q4f16_1z"]
    packed = quantize(random_weight(4, 64), row)
    with pytest.raises(MissingTensor, match="q_zero"):
        dequantize({k: v for k, v in packed.items() if k != "q_zero"}, row, (4, 64))
    with pytest.raises(ShapeMismatch, match=r"q_weight .* must be u32 \[4, 12\]"):
        dequantize(packed, row, (4, 65))
    with pytest.raises(ShapeMismatch, match="found float32"):
        dequantize(packed | {"q_scale": packed["q_scale"].astype(np.float32)}, row, (4, 64))
    packed["q_scale"][0, 0] = np.nan
    with pytest.raises(UnsafeFile, match="q_scale"):
        dequantize(packed, row, (4, 64))
