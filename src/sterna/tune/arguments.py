"""What a kernel is measured with: arguments as its producers would leave them, of random contents.

In: a kernel's Group and the sizes of its dims. Out: bytes for each input, and room for an output.
Contents matter where a rule counts on them: sums of codes of x are those of the codes drawn beside
them, for a schedule may take a weight's bias off its codes instead of off their products. Knows
no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import I32
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import Binary, Buffer, Expr, Intrin, Load, Var, const_value, wrap
from sterna.ir.rewrite import free_vars, loads, substitute, visit
from sterna.ir.simplify import simplify

SLACK = 4096  # bytes behind each argument that vector tails may touch
_CODES = {"dot2": np.int16, "dot4": np.int8}  # what an i32 of x holds, by what multiplies it


def elements(buffer: Buffer, sizes: Mapping[str, int]) -> int:
    """Numbers in a buffer when dims have these sizes."""
    total = 1
    for dim in buffer.shape:
        values: dict[Var, Expr] = {v: wrap(sizes[v.name]) for v in free_vars(dim)}
        total *= int(const_value(simplify(substitute(dim, values))) or 0)
    return total


def drawn(
    group: Group, sizes: Mapping[str, int], draw: np.random.Generator
) -> list[NDArray[np.uint8]]:
    """The inputs' bytes: floats of unit scale, integers of any bits, sums that are true."""
    found = {buffer: _contents(buffer, sizes, draw) for buffer in group.inputs}
    for total in group.computes:
        for codes, kind, sums in _summed(group, total):
            if codes in found and sums in found:
                parts = found[codes].view(kind).reshape(found[sums].size, -1)
                found[sums] = parts.sum(axis=1, dtype=np.int32)
    return [
        np.concatenate([found[b].view(np.uint8), np.zeros(SLACK, np.uint8)]) for b in group.inputs
    ]


def _contents(buffer: Buffer, sizes: Mapping[str, int], draw: np.random.Generator) -> NDArray[Any]:
    count = elements(buffer, sizes)
    if buffer.dtype.is_float:
        return draw.standard_normal(count, np.float32).astype(buffer.dtype.numpy)
    values = np.frombuffer(draw.bytes(count * buffer.dtype.bytes), buffer.dtype.numpy)
    if buffer.dtype.bits == 32 and buffer.dtype.kind == "int":
        values = values >> 1 & 0x3FFF3FFF  # pairs of 16 bits whose sums stay exact
    return values


def _summed(group: Group, total: Compute) -> list[tuple[Buffer, Any, Buffer]]:
    """(codes of x, what they are, their sums) of each `products of a group - bias * sum`."""
    stages, found = {c.out: c for c in group.computes}, []
    for node in visit(total.body):
        if not isinstance(node, Binary) or node.op != "-" or not isinstance(node.a, Load):
            continue
        partial = stages.get(node.a.buffer)
        dot = partial.body if partial is not None else None
        if not isinstance(dot, Intrin) or dot.name not in _CODES or not isinstance(node.b, Binary):
            continue
        codes = dot.args[0]
        sums = [n.buffer for n in loads(node.b) if n.buffer.dtype == I32]
        if isinstance(codes, Load) and len(sums) == 1:
            found.append((codes.buffer, _CODES[dot.name], sums[0]))
    return found


def room(buffer: Buffer, sizes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Zeros for an output."""
    return np.zeros(elements(buffer, sizes) * buffer.dtype.bytes + SLACK, np.uint8)
