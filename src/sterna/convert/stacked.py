"""Checkpoints that hold the weights of all experts in one tensor, taken apart expert by expert.

In: tensors by name, and the family's table of stacks. Out: the same under the names that one
expert's own matrix has elsewhere. Nothing is read before somebody asks for a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from sterna.base.errors import ShapeMismatch
from sterna.convert.stored import Parts, StoredTensor, Tensors
from sterna.models.family import Stack

Take = Callable[[StoredTensor, int], Parts]  # of an expert's slice


def unstacked(tensors: Tensors, stacks: Mapping[str, Stack]) -> dict[str, StoredTensor]:
    """Every tensor; those that a stack names as one for each expert and part.

    A plain stack of weights is [experts, in, out] unless it is `by_rows`, a packed one
    [experts, out, in], since codes run along what a product sums over; biases are [experts, out].
    Raises ShapeMismatch.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        own = list(_parts(name, tensor, stacks))
        found |= {part.name: part for part in own} if own else {name: tensor}
    return found


def _parts(name: str, tensor: StoredTensor, stacks: Mapping[str, Stack]) -> Iterator[StoredTensor]:
    for key, stack in stacks.items():
        if name.endswith(f".{key}"):
            leaf, rank = "weight", 3
        elif name.endswith(f".{key}_bias"):
            leaf, rank = "bias", 2
        else:
            continue
        turned = rank == 3 and tensor.scheme is None and not stack.by_rows
        rows = tensor.shape[-1 if turned or rank == 2 else 1] if len(tensor.shape) == rank else 0
        count = len(stack.parts)
        if not rows or rows % count:
            raise ShapeMismatch(
                f"the tensor {name} in {tensor.path} has the shape {list(tensor.shape)}, which "
                f"are not {' and '.join(stack.parts)} of each expert"
            )
        module = f"{name.rpartition('.')[0]}.{{}}.{{}}.{leaf}"
        for expert in range(tensor.shape[0]):
            for i, part in enumerate(stack.parts):
                yield _part(module.format(expert, part), tensor, expert, stack, i, turned)


def _part(
    name: str, tensor: StoredTensor, expert: int, stack: Stack, i: int, turned: bool
) -> StoredTensor:
    """Part i of an expert: every `count`-th of its rows, or one block of them."""
    count = len(stack.parts)
    _, *inner = tensor.shape
    rows, *depth = inner[::-1] if turned else inner
    size = rows // count
    own = slice(i, None, count) if stack.alternate else slice(i * size, (i + 1) * size)

    def read(first: int, last: int) -> Parts:
        whole = {key: part[0] for key, part in tensor.read(expert, expert + 1).items()}
        taken = {key: (part.T if turned else part)[own][first:last] for key, part in whole.items()}
        return {key: np.ascontiguousarray(part) for key, part in taken.items()}

    nbytes = tensor.nbytes // (tensor.shape[0] * count)
    return StoredTensor(
        name, (size, *depth), tensor.dtype, nbytes, tensor.path, read, tensor.scheme, whole=True
    )
