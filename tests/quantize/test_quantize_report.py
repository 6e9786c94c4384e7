"""Errors of restored weights, and that the receipt speaks of the file, not of memory."""

import json
from dataclasses import asdict, replace
from math import log10, sqrt

import numpy as np
import pytest

from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.report import ErrorSum, TensorError, error, measure
from sterna.quantize.scheme import SCHEMES, Scheme


def weight(rows: int = 12) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 172)).astype(np.float32)


def test_error_by_hand() -> None:
    found = error(np.array([3.0, -4.0]), np.array([3.5, -4.0]))
    assert found == TensorError(0.5, sqrt(0.125), 0.1, pytest.approx(20.0))
    assert found.sqnr_db == -20 * log10(found.relative_rms)


def test_exact_and_empty_and_no_signal() -> None:
    assert error(weight(), weight()) == TensorError(0.0, 0.0, 0.0, None)
    assert error(np.zeros((0, 3)), np.zeros((0, 3))) == TensorError(0.0, 0.0, 0.0, None)
    assert error(np.zeros(2), np.ones(2)) == TensorError(1.0, 1.0, 1.0, 0.0)


def test_it_is_json() -> None:
    for found in (error(np.ones(3), np.zeros(3)), error(np.ones(3), np.ones(3))):
        assert TensorError(**json.loads(json.dumps(asdict(found), allow_nan=False))) == found


def test_sums_merge() -> None:
    a, b = weight(), weight() * np.float32(1.01)
    left, right = ErrorSum(), ErrorSum()
    left.add(a[:5], b[:5])
    right.add(a[5:], b[5:])
    left.merge(right)
    assert left.count == a.size
    assert asdict(left.result()) == pytest.approx(asdict(error(a, b)))


@pytest.mark.parametrize("row", SCHEMES.values(), ids=lambda row: row.name)
def test_measure_is_the_error_of_the_restored_file(row: Scheme) -> None:
    packed = quantize(weight(), row)
    seen = dict(packed)
    if row.is_quantized:
        scale = packed["q_scale"].astype(row.scale_on_disk.numpy)
        seen["q_scale"] = scale.astype(row.compute.numpy)
    wanted = error(weight(), dequantize(seen, row, (12, 172)))
    assert asdict(measure(weight(), packed, row).result()) == pytest.approx(asdict(wanted))


def test_more_bits_cost_less_error() -> None:
    def sqnr(name: str) -> float:
        row = SCHEMES[name]
        return measure(weight(), quantize(weight(), row), row).result().sqnr_db or 1e9

    assert sqnr("q3f16_1") < sqnr("q3f16_1z") < sqnr("q4f16_1") < sqnr("q4f16_1z")
    assert sqnr("q4f16_1z") < sqnr("q8f16_1") < sqnr("q8f16_1z") < sqnr("q0f16") < sqnr("q0f32")
    assert 12 < sqnr("q3f16_1") < 15
    assert 18 < sqnr("q4f16_1") < 22
    assert replace(SCHEMES["q4f16_1"], group=128).bits_per_weight == 4.125
