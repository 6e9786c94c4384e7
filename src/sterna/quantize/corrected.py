"""Codes chosen by what a layer computes, not by each weight alone: error correction.

In: a weight [N, K], and X^T X of what it is multiplied with on a calibration text. Out: packed
tensors of a plain grid whose products differ least. Two things beyond round-to-nearest: each
group's scale is the best of a few by squared error weighted with its inputs' energy; and the error
of each column is made up for by the columns after it (Frantar et al. 2022, "GPTQ",
arXiv:2210.17323, with its blocked update and Cholesky form). Codes, scales and layout are the
scheme's own, so a reader sees no difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import UsageError
from sterna.quantize.pack import pack_grid
from sterna.quantize.scheme import Scheme

Array = NDArray[Any]
Floats = NDArray[np.float32]

DAMPING = 0.01  # of the mean energy, added to every input's: keeps the inverse tame
COLUMNS = 128  # whose errors are passed on within themselves before the rest hears of them
_SHRINK = np.linspace(1.0, 0.7, 13)  # scales tried, as shares of the one that clips nothing


@dataclass(frozen=True, slots=True)
class _Grid:
    """Scale and zero [N, 1] of one group."""

    scale: Floats
    zero: Floats
    most: int

    def codes(self, values: Array) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = np.rint(values / self.scale + self.zero)
        clipped: Floats = np.clip(np.nan_to_num(found, nan=0.0), 0, self.most).astype(np.float32)
        return clipped

    def values(self, codes: Floats) -> Floats:
        return (codes - self.zero) * self.scale


def energy(x: Array) -> NDArray[np.float64]:
    """X^T X [K, K] of inputs [n, K]."""
    wide = x.astype(np.float64)
    product: NDArray[np.float64] = wide.T @ wide
    return product


def quantize_corrected(
    weight: Array, inputs: NDArray[np.float64], scheme: Scheme
) -> dict[str, Array]:
    """Pack `weight` so that its products with the inputs of `energy` change least.

    Raises UsageError for a scheme that is not a plain grid of groups.
    """
    if not scheme.is_quantized or not scheme.is_plain_grid:
        raise UsageError(f"{scheme.name} cannot be chosen by error correction")
    rows, depth = weight.shape
    groups = -(-depth // scheme.group)
    work = weight.astype(np.float32)
    share, importance = _shares(inputs)
    codes = np.zeros((rows, depth), np.uint8)
    scale = np.zeros((rows, groups), np.float32)
    zero = np.zeros((rows, groups), np.float32)
    grid = _Grid(scale[:, :1], zero[:, :1], scheme.max_code)
    for first in range(0, depth, COLUMNS):
        last = min(first + COLUMNS, depth)
        errors = np.zeros((rows, last - first), np.float32)
        for k in range(first, last):
            if k % scheme.group == 0:
                g, end = k // scheme.group, min(k + scheme.group, depth)
                grid = _best_grid(work[:, k:end], importance[k:end], scheme)
                scale[:, g : g + 1], zero[:, g : g + 1] = grid.scale, grid.zero
            column = work[:, k : k + 1]
            chosen = grid.codes(column)
            codes[:, k] = chosen[:, 0]
            error = (column - grid.values(chosen)) / share[k, k]
            errors[:, k - first : k - first + 1] = error
            # Groups begin at multiples of theirs, so a block never ends inside one it must scale.
            work[:, k + 1 : last] -= error * share[k, k + 1 : last]
        work[:, last:] -= errors @ share[first:last, last:]
    zeros = zero if scheme.affine else None
    return pack_grid(codes, scale, zeros, scheme)


def _shares(inputs: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """The upper Cholesky factor of the damped inverse, and each input's energy."""
    importance = np.diag(inputs).copy()
    mean = importance.mean()
    damped = inputs.copy()
    damped[np.diag_indices_from(damped)] += DAMPING * (mean if mean > 0 else 1.0)
    inverse = np.linalg.inv(damped)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    least = 1e-6 * (mean if mean > 0 else 1.0)  # an input that never fires still wants a scale
    return upper.astype(np.float32), np.maximum(importance, least).astype(np.float32)


def _best_grid(values: Floats, importance: Floats, scheme: Scheme) -> _Grid:
    """The grid of a group [N, g] whose weighted squared error is least, row by row."""
    best: _Grid | None = None
    least = np.zeros(0)
    for shrink in _SHRINK:
        grid = _grid(values, float(shrink), scheme)
        off = grid.values(grid.codes(values)) - values
        cost = (off * off * importance).sum(axis=1, keepdims=True)
        if best is None:
            best, least = grid, cost
            continue
        better = cost < least
        scale = np.where(better, grid.scale, best.scale)
        best = _Grid(scale, np.where(better, grid.zero, best.zero), grid.most)
        least = np.minimum(cost, least)
    assert best is not None, "there is a scale to try"
    return best


def _grid(values: Floats, shrink: float, scheme: Scheme) -> _Grid:
    """The grid that covers `shrink` of a group's range, its scale as the file will hold it."""
    if scheme.affine:
        low = np.minimum(values.min(axis=1, keepdims=True), 0) * np.float32(shrink)
        high = np.maximum(values.max(axis=1, keepdims=True), 0) * np.float32(shrink)
        scale = _on_disk((high - low) / np.float32(scheme.max_code), scheme)
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = np.clip(np.nan_to_num(np.rint(-low / scale)), 0, scheme.max_code)
        return _Grid(scale, zero.astype(np.float32), scheme.max_code)
    widest = np.abs(values).max(axis=1, keepdims=True) * np.float32(shrink)
    scale = _on_disk(widest / np.float32(scheme.bias), scheme)
    return _Grid(scale, np.full_like(scale, scheme.bias), scheme.max_code)


def _on_disk(scale: Floats, scheme: Scheme) -> Floats:
    return scale.astype(scheme.scale_on_disk.numpy).astype(np.float32)
