"""The short way from a packed code to f32 gives the bits of the long one."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.base.dtype import F32, I32, U32
from sterna.codegen.c_codes import packed_code
from sterna.ir.expr import Binary, Buffer, cast, wrap

WORDS = Buffer("words", U32, (wrap(4),))


def written(low: int, bits: int, zero: float) -> Binary:
    word = WORDS[0]
    code = (word >> wrap(low, U32)) & wrap((1 << bits) - 1, U32)
    difference = cast(F32, cast(I32, code)) - wrap(zero, F32)
    assert isinstance(difference, Binary)
    return difference


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("zero", [0, 7, 127])
def test_every_place_in_a_word(bits: int, zero: int) -> None:
    found = 0
    for low in range(33 - bits):
        code = packed_code(written(low, bits, zero))
        if code is None:
            continue
        found += 1
        codes = np.arange(1 << bits, dtype=np.uint32)
        for noise in (0, 0xFFFFFFFF):
            words = (codes << np.uint32(low)) | (
                np.uint32(noise) & ~np.uint32(code_mask(low, bits))
            )
            moved = words >> np.uint32(code.moved)
            floats = ((moved & np.uint32(code.mask)) | np.uint32(code.exponent)).view(np.float32)
            short = floats - np.float32(code.offset)
            long = codes.astype(np.float32) - np.float32(zero)
            assert np.array_equal(short.view(np.uint32), long.view(np.uint32)), low
    assert found >= 32 - bits - 2


def code_mask(low: int, bits: int) -> int:
    return ((1 << bits) - 1) << low


def test_a_shift_that_leaves_only_the_code_needs_no_mask() -> None:
    difference = cast(F32, cast(I32, WORDS[0] >> wrap(28, U32))) - 7.0
    assert isinstance(difference, Binary)
    code = packed_code(difference)
    assert code is not None
    assert (code.low, code.bits, code.zero) == (28, 4, 7)


def test_other_differences_stay_as_written() -> None:
    assert packed_code(written(4, 4, 0.5)) is None
    assert packed_code(written(4, 16, 7)) is None
    assert packed_code(written(4, 4, -7)) is None
    signed = cast(F32, cast(I32, WORDS[0]) >> 4) - 7.0
    assert isinstance(signed, Binary)
    assert packed_code(signed) is None
