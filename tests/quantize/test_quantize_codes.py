"""The bit layout of codes in words, against Python's own big integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.dtype import F16
from sterna.quantize.codes import pack_codes, unpack_codes
from sterna.quantize.scheme import Packing, Scheme

LAYOUTS: list[tuple[int, Packing]] = [
    (bits, packing) for bits in (2, 3, 4, 5, 6, 8) for packing in ("word", "stream")
]


def as_integer(codes: list[int], row: Scheme) -> int:
    """All words of the codes as one little-endian integer, by definition of the layout."""
    if row.packing == "stream":
        return sum(code << (i * row.bits) for i, code in enumerate(codes))
    per = 32 // row.bits
    return sum(code << (i // per * 32 + i % per * row.bits) for i, code in enumerate(codes))


@pytest.mark.parametrize(("bits", "packing"), LAYOUTS)
@settings(derandomize=True, max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(0, 3), periods=st.integers(0, 4))
def test_layout_and_round_trip(
    bits: int, packing: Packing, data: st.DataObject, rows: int, periods: int
) -> None:
    row = Scheme("codes", bits, F16, packing=packing)
    n = periods * row.codes_per_period
    flat = data.draw(st.binary(min_size=rows * n, max_size=rows * n))
    codes = (np.frombuffer(flat, np.uint8) & (2**bits - 1)).reshape(rows, n)
    words = pack_codes(codes, row)
    assert words.dtype == np.uint32
    assert words.shape == (rows, periods * row.words_per_period)
    for packed, wanted in zip(words, codes):
        assert int.from_bytes(packed.tobytes(), "little") == as_integer(wanted.tolist(), row)
    assert np.array_equal(unpack_codes(words, row), codes)


def test_three_bits_run_across_words() -> None:
    row = Scheme("codes", 3, F16, group=32, packing="stream")
    assert row.words_per_unit == 3
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 10] = 0b101  # bits 30, 31 and 32
    assert pack_codes(codes, row).tolist() == [[0x40000000, 0b1, 0]]
