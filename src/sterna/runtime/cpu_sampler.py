"""The sampler of a CPU library: one C function over the logits that a step left behind.

Called as the entry points are (ABI 1 of codegen/pool.h); its inputs are the arrays of SampleInput
where they lie.
"""

from __future__ import annotations

import ctypes

import numpy as np

from sterna.base.artifact import Entry
from sterna.base.errors import ArtifactError, DeviceError
from sterna.runtime.sampling import Floats, Ints, SampleInput

_DIMS = ("r", "e", "v")
_INPUTS = (
    "logits", "rows", "inverse_temperature", "limits", "keys", "masked", "allowed",
    "edit_indptr", "edit_ids", "edits",
)  # fmt: skip


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

    def run(self, logits: Floats, given: SampleInput) -> Ints:
        """The tokens; `given` was checked."""
        sampled = np.empty(len(given.rows), np.int32)
        arrays = [logits, *(getattr(given, name) for name in _INPUTS[1:]), sampled]
        pointers = np.array([array.ctypes.data for array in arrays], np.uint64)
        dims = np.array([len(given.rows), len(given.edit_ids), given.vocabulary], np.int64)
        code = self._function(self._pool, pointers.ctypes.data, None, dims.ctypes.data)
        if code != 0:
            raise DeviceError(f"the sampler failed with code {code}")
        return sampled
