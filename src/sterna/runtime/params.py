"""What every device checks and reads alike when a library is loaded.

In: a manifest and the model folder's tensors. Out: inputs and outputs known to be those that a
step can fill, and weights laid out as the kernels read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import ROWS, SEE, Manifest, Param
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError, MissingTensor, ShapeMismatch
from sterna.runtime.batch import DIMS, FLOATS, INPUTS
from sterna.runtime.memory import pack, packed_shape


class WeightReader(Protocol):
    """A tensor of the model folder, not yet in memory."""

    def read(self) -> NDArray[Any]:
        """The whole tensor, in its shape and dtype."""
        ...


def check_names(manifest: Manifest) -> None:
    """Inputs, outputs and dims of every entry are those a step can fill."""
    for entry in manifest.entries:
        inputs = [
            b.name
            for b in entry.inputs
            if b.name not in INPUTS or b.dtype != ("f32" if b.name in FLOATS else "i32")
        ]
        unknown = inputs + [dim.name for dim in entry.dims if dim.name not in DIMS]
        outputs = [(b.name, b.dtype, len(b.shape)) for b in entry.outputs]
        result = "logits" if manifest.model.pooling is None else "states"
        result = ROWS if entry.name == SEE else result
        if unknown or outputs != [(result, "f32", 2)]:
            raise ArtifactError(
                f"entry point {entry.name!r} wants inputs or gives outputs that this Sterna does "
                f"not know ({', '.join(unknown) or outputs}); compile the model again"
            )


def read_param(
    param: Param, weights: Mapping[str, WeightReader], memory: NDArray[np.uint8]
) -> None:
    """Read a weight into `memory`, zeroed and as long as `packed_bytes`.

    Room for adapters where there are none stays zero. MissingTensor and ShapeMismatch for weights
    that are not those the library was compiled for.
    """
    if param.adapter and param.name not in weights:
        return
    if param.name not in weights:
        raise MissingTensor(
            f"the library wants a weight {param.name!r} that the model folder does not have; "
            "compile the library for this folder"
        )
    source = np.asarray(weights[param.name].read())
    wanted = dtype(param.dtype).numpy
    if source.shape != param.shape or source.dtype != wanted:
        raise ShapeMismatch(
            f"weight {param.name!r} is {source.dtype}{list(source.shape)}, the library wants "
            f"{wanted}{list(param.shape)}; compile the library for this folder"
        )
    pack(source, param, memory.view(wanted).reshape(packed_shape(param)))
