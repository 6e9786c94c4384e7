"""Weights to packed tensors and back, in numpy, a block of rows at a time.

In: a float weight `[N, K]` or `[E, N, K]` (an array or a memory map; f16, bf16, f32, f64) and a
`Scheme`. Out: {"q_weight", "q_scale"[, "q_zero"]} under MLC's names, or {"weight"} where nothing is
quantized. Symmetric arithmetic is that of MLC since April 2026, bit for bit.
It does not know which layers are quantized, checkpoints or files.
Invariant: beside input and result, memory use is a few blocks of about a megabyte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, F32, F64, I32, U8, U32, DType
from sterna.base.errors import MissingTensor, ShapeMismatch, UnsafeFile, UsageError
from sterna.quantize.code_values import code_values
from sterna.quantize.codes import pack_codes, unpack_codes
from sterna.quantize.scheme import Scheme

Array = NDArray[Any]
Floats = NDArray[np.float32]

_BLOCK = 1 << 18  # weights at a time: their float32 copies stay in a core's own cache
_DROPPED_BITS = {F16: 13, BF16: 16, F32: 0}  # of float32's 23-bit mantissa
_SOURCES = tuple(d.numpy for d in (F16, BF16, F32, F64))


def packed_spec(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[tuple[int, ...], DType]]:
    """Shape and dtype of every tensor that `quantize` makes of a weight of this shape.

    A last group that K does not fill still takes its whole words (codes past K are 0), so every K
    can be stored in every scheme. Three-dimensional weights are always NK. Raises UsageError.
    """
    if not scheme.is_quantized:
        return {"weight": (shape, scheme.compute)}
    if len(shape) not in (2, 3):
        raise UsageError(
            f"{scheme.name} packs weights of 2 or 3 dimensions, not of shape {list(shape)}"
        )
    *lead, k = shape
    units = -(-k // scheme.unit)
    groups = units * (scheme.unit // scheme.group)
    spec = {
        "q_weight": ((*lead, units * scheme.words_per_unit), U32),
        "q_scale": ((*lead, groups), scheme.scale_dtype),
    }
    if scheme.affine:
        spec["q_zero"] = ((*lead, groups), U8)
    if scheme.minimum:
        spec["q_min"] = ((*lead, groups), U8 if scheme.outer else scheme.scale_dtype)
    if scheme.outer:
        spec["q_outer"] = ((*lead, units), F16)
        if scheme.minimum:
            spec["q_outer_min"] = ((*lead, units), F16)
    if scheme.indexed:
        spec["q_group"] = ((k,), I32)
    if _transposed(shape, scheme):
        return {key: (dims[::-1], dtype) for key, (dims, dtype) in spec.items()}
    return spec


def quantize(weight: Array, scheme: Scheme, *, name: str = "weight") -> dict[str, Array]:
    """Pack a weight; `name` is only for messages.

    Symmetric: scale = max|w| / (2^(bits-1) - 1) and code = clip(rint(w / scale + bias)), every
    operation rounded to the compute dtype. Affine: scale = (max - min) / (2^bits - 1) rounded to
    what the file will hold, zero = rint(-min / scale), code = clip(rint(w / scale) + zero), where
    min <= 0 <= max: the range of a group is widened to hold 0, so that zero points are codes too
    and a constant group comes back up to the rounding of its scale.
    Raises UnsafeFile for NaN or infinite weights, UsageError for weights that the compute dtype
    cannot hold, ShapeMismatch for a source that is not float.
    """
    if not scheme.is_quantized:
        return {"weight": cast(weight, scheme.compute, name=name)}
    _check_source(weight, name)
    spec = packed_spec(weight.shape, scheme)
    packed = {key: np.empty(dims, dtype.numpy) for key, (dims, dtype) in spec.items()}
    matrix = weight.reshape(prod(weight.shape[:-1]), weight.shape[-1])
    views = {key: _rows(value, weight.shape, scheme) for key, value in packed.items()}
    pack = _affine if scheme.affine else _symmetric
    for rows in _blocks(*matrix.shape):
        values = _as_compute(matrix[rows], scheme.compute, name).astype(np.float32, copy=False)
        codes, scale, zero = pack(_in_groups(values, scheme), scheme)
        codes = codes.reshape(len(values), codes.shape[1] * scheme.group)
        codes[:, matrix.shape[1] :] = 0  # past K, as MLC
        views["q_weight"][rows] = pack_codes(codes, scheme)
        views["q_scale"][rows] = scale
        if zero is not None:
            views["q_zero"][rows] = zero
    return packed


def pack_grid(
    codes: NDArray[np.uint8], scale: Array, zero: Array | None, scheme: Scheme
) -> dict[str, Array]:
    """Pack codes [N, K] that were chosen elsewhere, with scales and zero points [N, G]."""
    shape = codes.shape
    spec = packed_spec(shape, scheme)
    packed = {key: np.empty(dims, dtype.numpy) for key, (dims, dtype) in spec.items()}
    views = {key: _rows(value, shape, scheme) for key, value in packed.items()}
    views["q_weight"][:] = pack_codes(_in_groups(codes, scheme).reshape(shape[0], -1), scheme)
    views["q_scale"][:] = scale
    if zero is not None:
        views["q_zero"][:] = zero
    return packed


def cast(weight: Array, dtype: DType, *, name: str = "weight") -> Array:
    """A weight of any rank in another float dtype, refused as in `quantize` if that spoils it."""
    _check_source(weight, name)
    columns = weight.shape[-1] if weight.ndim > 1 else weight.size
    flat = weight.reshape(weight.size // columns if columns else 0, columns)
    out = np.empty(flat.shape, dtype.numpy)
    for rows in _blocks(*flat.shape):
        out[rows] = _as_compute(flat[rows], dtype, name)
    return out.reshape(weight.shape)


def dequantize(packed: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> Floats:
    """Restore float32 values; of MLC's schemes, cast to the compute dtype, what MLC reads.

    (A code times an f16 or bf16 scale is exact in float32, so rounding it later changes nothing.)
    Raises MissingTensor, ShapeMismatch and UnsafeFile for tensors that cannot be this weight.
    """
    out = np.empty(shape, np.float32)
    matrix = out.reshape(prod(shape[:-1]), shape[-1])
    for rows, values in restored_rows(packed, scheme, shape):
        matrix[rows] = values
    return out


def restored_rows(
    packed: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]
) -> Iterator[tuple[slice, Floats]]:
    """What `dequantize` gives, block by block: rows of the weight as a matrix, and their values."""
    _check_packed(packed, scheme, shape)
    rows_total, k = prod(shape[:-1]), shape[-1]
    if not scheme.is_quantized:
        flat = packed["weight"].reshape(rows_total, k)
        for rows in _blocks(rows_total, k):
            yield rows, flat[rows].astype(np.float32)
        return
    views = {key: _rows(value, shape, scheme) for key, value in packed.items() if key != "q_group"}
    for rows in _blocks(rows_total, k):
        parts = {key: view[rows] for key, view in views.items()}
        codes = unpack_codes(np.ascontiguousarray(parts["q_weight"]), scheme)
        if "q_group" in packed:
            yield rows, _restored_indexed(codes[:, :k], parts, packed["q_group"])
        else:
            yield rows, _restored(codes, parts, scheme)[:, :k]


def _restored(codes: Array, parts: Mapping[str, Array], scheme: Scheme) -> Floats:
    """f32 [R, K] of codes in order; every step is one that kernels make, rounded as there."""
    scale, minimum = parts["q_scale"].astype(np.float32), None
    if scheme.minimum:
        minimum = parts["q_min"].astype(np.float32)
    if scheme.outer:
        times = scheme.outer // scheme.group
        scale *= np.repeat(parts["q_outer"].astype(np.float32), times, axis=-1)
        if minimum is not None:
            minimum *= np.repeat(parts["q_outer_min"].astype(np.float32), times, axis=-1)
    values = code_values(codes, scheme).reshape(*scale.shape, scheme.group)
    if scheme.affine:
        values -= parts["q_zero"][..., None]
    elif scheme.bias:
        values -= np.float32(scheme.bias)
    values *= scale[..., None]
    if minimum is not None:
        values += minimum[..., None]
    return values.reshape(codes.shape)


def _restored_indexed(codes: Array, parts: Mapping[str, Array], group: Array) -> Floats:
    """The same where `group` [K] says of which group each column is; always affine."""
    values = codes.astype(np.float32)
    values -= parts["q_zero"][:, group]
    values *= parts["q_scale"].astype(np.float32)[:, group]
    return values


def _symmetric(groups: Floats, scheme: Scheme) -> tuple[NDArray[np.uint8], Array, None]:
    """Codes `[R, G, g]` and scales `[R, G]` in the compute dtype."""
    bias = np.float32(scheme.bias)
    scale = (np.abs(groups).max(axis=-1) / bias).astype(scheme.compute.numpy)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = groups / scale.astype(np.float32)[..., None]
    _round_mantissa(quotient, scheme.compute)
    quotient += bias
    _round_mantissa(quotient, scheme.compute)
    return _to_codes(quotient, scale, scheme), scale, None


def _affine(groups: Floats, scheme: Scheme) -> tuple[NDArray[np.uint8], Array, NDArray[np.uint8]]:
    """Codes `[R, G, g]`, scales `[R, G]` and zero points `[R, G]`."""
    low = np.minimum(groups.min(axis=-1), 0).astype(np.float64)  # f64: the range may pass f32's
    high = np.maximum(groups.max(axis=-1), 0).astype(np.float64)
    exact = ((high - low) / scheme.max_code).astype(np.float32)
    scale = exact.astype(scheme.scale_on_disk.numpy).astype(scheme.compute.numpy)
    step = scale.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zero = _to_codes(np.divide(-low, step, dtype=np.float32), scale, scheme)
        quotient = groups / step[..., None]
    np.rint(quotient, out=quotient)
    quotient += zero[..., None]
    return _to_codes(quotient, scale, scheme), scale, zero


def _to_codes(values: Floats, scale: Array, scheme: Scheme) -> NDArray[np.uint8]:
    """Round half to even, clip, and let 0 / 0 of an all-zero group be code 0."""
    np.rint(values, out=values)
    np.clip(values, 0, scheme.max_code, out=values)
    if not scale.all():
        np.nan_to_num(values, copy=False, nan=0.0)
    return values.astype(np.uint8)


def _round_mantissa(values: Floats, dtype: DType) -> None:
    """Round float32 in place to the mantissa of f16 or bf16, half to even.

    Dividing or adding in float32 and rounding once more is the narrow operation itself, since 24
    bits are at least 2 * 11 + 2 (Figueroa, "When is double rounding innocuous?", 1995). The narrow
    exponent range may be ignored here: quotients are at most a few times the bias, and those below
    f16's normal range vanish when the bias is added.
    """
    dropped = _DROPPED_BITS[dtype]
    if not dropped:
        return
    word = values.view(np.uint32)
    odd = word >> np.uint32(dropped)
    odd &= np.uint32(1)
    odd += np.uint32((1 << (dropped - 1)) - 1)
    word += odd
    word &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)


def _in_groups(values: Array, scheme: Scheme) -> Array:
    """`[R, K]` as `[R, G, g]`, with zeros where K does not fill the last group."""
    rows, k = values.shape
    ragged = -k % scheme.group
    if ragged:
        values = np.pad(values, ((0, 0), (0, ragged)))
    return values.reshape(rows, values.shape[1] // scheme.group, scheme.group)


def _as_compute(block: Array, dtype: DType, name: str) -> Array:
    with np.errstate(over="ignore"):
        values = block.astype(dtype.numpy)
    if np.isfinite(values).all():
        return values
    if not np.isfinite(block).all():
        raise UnsafeFile(
            f"{name} holds NaN or infinite weights, so the model would only produce noise; "
            "get the checkpoint again or ask its author"
        )
    raise UsageError(
        f"{name} holds weights up to {np.abs(block.astype(np.float64)).max():.3g}, which {dtype} "
        "cannot hold; choose a scheme with bf16 or f32, such as q4bf16_1 or q4f32_1"
    )


def _check_source(weight: Array, name: str) -> None:
    if weight.dtype not in _SOURCES:
        raise ShapeMismatch(
            f"{name} has dtype {weight.dtype}, but only float16, bfloat16, float32 and float64 "
            "weights can be converted"
        )


def _check_packed(packed: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> None:
    for key, (dims, dtype) in packed_spec(shape, scheme).items():
        if key not in packed:
            raise MissingTensor(f"a {scheme.name} weight needs {key!r}, found {sorted(packed)}")
        found = packed[key]
        if found.shape != dims or found.dtype != dtype.numpy:
            raise ShapeMismatch(
                f"{key} of a {scheme.name} weight {list(shape)} must be {dtype} {list(dims)}, "
                f"found {found.dtype} {list(found.shape)}"
            )
    for key in ("q_scale", "q_min", "q_outer", "q_outer_min"):
        number = packed.get(key)
        if number is not None and number.dtype.kind not in "iu" and not np.isfinite(number).all():
            raise UnsafeFile(f"{key} holds NaN or infinite numbers; convert the model again")
    if "q_group" in packed:
        _check_index(packed["q_group"], packed["q_scale"].shape[-1])


def _check_index(index: Array, groups: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < groups):
        raise UnsafeFile(
            f"q_group names groups {index.min()} to {index.max()}, but there are {groups}"
        )


def _transposed(shape: tuple[int, ...], scheme: Scheme) -> bool:
    return scheme.layout == "KN" and len(shape) == 2


def _rows(stored: Array, shape: tuple[int, ...], scheme: Scheme) -> Array:
    """A view of a packed tensor with one row for each row of the weight as a matrix."""
    if _transposed(shape, scheme):
        return stored.T
    return stored.reshape(prod(shape[:-1]), stored.shape[-1])


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
