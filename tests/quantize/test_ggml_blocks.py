"""Blocks of every GGUF type come back exactly as the `gguf` package dequantizes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import UnsafeFile
from sterna.checkpoint.ggml_types import GGML_TYPES
from sterna.quantize.ggml_blocks import GGML_SCHEMES, split_blocks
from sterna.quantize.pack import dequantize, packed_spec

gguf = pytest.importorskip("gguf", reason="needs the gguf package, the reference for its formats")

SIZES = {t.name: (t.weights, t.bytes) for t in GGML_TYPES.values() if t.name in GGML_SCHEMES}


def random_blocks(name: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Any bits at all, but for scales that are NaN or infinite."""
    rng = np.random.default_rng(seed)
    size = SIZES[name][1]
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {
        "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
        "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
        "IQ4_NL": (0,), "MXFP4": (),
    }  # fmt: skip
    for at in halves[name]:
        raw[..., at + 1] &= 0xBF  # the exponent's top bit: no infinity, no NaN
    if name == "MXFP4":
        raw[..., 0] = np.minimum(raw[..., 0], 250)
    return raw.reshape(rows, blocks * size)


def test_every_quantized_type_has_a_scheme() -> None:
    plain = {"F32", "F16", "BF16", "F64"}
    assert set(GGML_SCHEMES) == {t.name for t in GGML_TYPES.values()} - plain


@pytest.mark.parametrize("name", GGML_SCHEMES)
@settings(derandomize=True, max_examples=15, deadline=None)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_equal_to_the_gguf_package(name: str, rows: int, blocks: int, seed: int) -> None:
    raw = random_blocks(name, rows, blocks, seed)
    reference = gguf.dequantize(raw, getattr(gguf.GGMLQuantizationType, name))
    scheme = GGML_SCHEMES[name]
    shape = (rows, blocks * SIZES[name][0])
    parts = split_blocks(raw, name)
    spec = packed_spec(shape, scheme)
    assert {k: (v.shape, v.dtype) for k, v in parts.items()} == {
        k: (dims, dtype.numpy) for k, (dims, dtype) in spec.items()
    }
    np.testing.assert_array_equal(dequantize(parts, scheme, shape), reference)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_gguf_packs_of_real_weights(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    raw = gguf.quantize(weight, getattr(gguf.GGMLQuantizationType, name))
    found = dequantize(split_blocks(raw, name), GGML_SCHEMES[name], weight.shape)
    assert np.abs(found - weight).max() < 0.4


@pytest.mark.parametrize("name", GGML_SCHEMES)
def test_no_bit_is_lost(name: str) -> None:
    """The parts tell any two blocks apart: as many values of parts as of bytes."""
    raw = random_blocks(name, 1, 1, 7)
    first = split_blocks(raw, name)
    for bit in range(0, raw.size * 8, 3 if raw.size > 34 else 1):
        other = raw.copy()
        other[0, bit // 8] ^= 1 << (bit % 8)
        try:
            second = split_blocks(other, name)
        except UnsafeFile:
            continue
        changed = [k for k in first if first[k].tobytes() != second[k].tobytes()]
        assert changed, f"bit {bit} of {name} makes no difference"


@pytest.mark.parametrize("name", GGML_SCHEMES)
def test_infinite_scales_are_refused(name: str) -> None:
    raw = np.full((1, SIZES[name][1]), 0xFF, np.uint8)
    with pytest.raises(UnsafeFile, match="noise"):
        split_blocks(raw, name)


def test_bits_per_weight() -> None:
    """As in the file, but for a byte a 6-bit scale and 16 bits a power of two."""
    bits = {name: row.bits_per_weight for name, row in GGML_SCHEMES.items()}
    assert bits == {
        "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q2_K": 3.125,
        "Q3_K": 3.5625, "Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625, "IQ4_NL": 4.5,
        "MXFP4": 4.5,
    }  # fmt: skip
