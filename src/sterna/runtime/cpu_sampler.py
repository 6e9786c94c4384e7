"""The sampler of a CPU library: one C function over the logits that a step left behind.

Called as the entry points are (ABI 1 of codegen/pool.h); its inputs are the arrays of SampleInput
where they lie.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Entry
from sterna.base.errors import ArtifactError, DeviceError
from sterna.runtime.sampling import Floats, Ints, SampleInput

_DIMS = ("r", "e", "v")
_INPUTS = (
    "logits", "rows", "inverse_temperature", "limits", "keys", "masked", "allowed",
    "edit_indptr", "edit_ids", "edits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments for one SampleInput, which may come again with other keys."""

    given: SampleInput
    sampled: Ints
    pointers: NDArray[np.uint64]  # the first is the logits'
    dims: NDArray[np.int64]
    addresses: tuple[int, int]  # of pointers and dims


class CpuSampler:
    """The function of `entry` in a loaded library; ArtifactError if it is not as it should be."""

    def __init__(self, handle: ctypes.CDLL, entry: Entry, pool: int) -> None:
        names = (tuple(b.name for b in entry.inputs), tuple(d.name for d in entry.dims))
        if names != (_INPUTS, _DIMS) or len(entry.outputs) != 1:
            raise ArtifactError(
                f"the library's sampler takes {names[0]} with {names[1]}, which this Sterna does "
                "not know; compile the model again"
            )
        try:
            self._function = handle[entry.symbol]
        except AttributeError:
            raise ArtifactError(
                f"the library has no function {entry.symbol!r} for its sampler"
            ) from None
        self._function.argtypes = [ctypes.c_void_p] * 4
        self._function.restype = ctypes.c_int32
        self._pool = pool
        self._call: _Call | None = None  # the last one

    def run(self, logits: Floats, given: SampleInput) -> Ints:
        """The tokens; `given` was checked."""
        call = self._call
        if call is None or call.given is not given:
            call = self._call = _prepare_call(given)
        call.pointers[0] = logits.ctypes.data
        pointers, dims = call.addresses
        code = self._function(self._pool, pointers, None, dims)
        if code != 0:
            raise DeviceError(f"the sampler failed with code {code}")
        return call.sampled.copy()


def _prepare_call(given: SampleInput) -> _Call:
    sampled = np.empty(len(given.rows), np.int32)
    arrays = [*(getattr(given, name) for name in _INPUTS[1:]), sampled]
    pointers = np.array([0, *(array.ctypes.data for array in arrays)], np.uint64)
    dims = np.array([len(given.rows), len(given.edit_ids), given.vocabulary], np.int64)
    return _Call(given, sampled, pointers, dims, (pointers.ctypes.data, dims.ctypes.data))
