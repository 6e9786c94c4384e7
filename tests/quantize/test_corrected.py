"""Error correction: products with the calibration's inputs change less than by rounding."""

import numpy as np
import pytest

from sterna.base.errors import UsageError
from sterna.quantize.corrected import energy, quantize_corrected
from sterna.quantize.pack import dequantize, packed_spec, quantize
from sterna.quantize.scheme import SCHEMES

QUANTIZED = [row for row in SCHEMES.values() if row.is_quantized]


def example(depth: int = 160, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that lie mostly in a few directions, as activations do, and a weight."""
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 1, (depth, depth)) * np.exp(-np.arange(depth) / 40)[:, None]
    x = (rng.normal(0, 1, (500, depth)) @ mix).astype(np.float32)
    return x, rng.normal(0, 0.02, (rows, depth)).astype(np.float32)


@pytest.mark.parametrize("scheme", QUANTIZED, ids=lambda row: row.name)
def test_less_error_than_rounding(scheme) -> None:
    x, weight = example()
    packed = quantize_corrected(weight, energy(x), scheme)
    spec = packed_spec(weight.shape, scheme)
    assert {k: (v.shape, v.dtype) for k, v in packed.items()} == {
        k: (shape, dtype.numpy) for k, (shape, dtype) in spec.items()
    }

    def lost(parts: dict[str, np.ndarray]) -> float:
        off = dequantize(parts, scheme, weight.shape) - weight
        return float(np.linalg.norm(x @ off.T))

    assert lost(packed) < 0.7 * lost(quantize(weight, scheme))


def test_inputs_that_never_fire() -> None:
    """A dead input, and no inputs at all, leave codes near rounding's."""
    x, weight = example()
    x[:, 7] = 0
    scheme = SCHEMES["q4f16_1"]
    for inputs in (energy(x), energy(np.zeros_like(x))):
        found = dequantize(quantize_corrected(weight, inputs, scheme), scheme, weight.shape)
        assert np.abs(found - weight).max() < 0.03
        assert np.isfinite(found).all()


def test_zero_weights_stay_zero() -> None:
    x, weight = example()
    for scheme in (SCHEMES["q4f16_1"], SCHEMES["q4f16_1z"]):
        packed = quantize_corrected(np.zeros_like(weight), energy(x), scheme)
        assert not dequantize(packed, scheme, weight.shape).any()


def test_plain_schemes_are_refused() -> None:
    x, weight = example()
    with pytest.raises(UsageError, match="q0f16"):
        quantize_corrected(weight, energy(x), SCHEMES["q0f16"])
