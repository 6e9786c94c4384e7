"""What a kernel costs at least: arithmetic and bytes, as formulas in the dims.

Counted from the IR, for looking at and for tests of the compiler: every operand once, every
multiplication and addition of the Computes. Weights that are unpacked are counted once a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32
from sterna.ir.compute import Compute, Group
from sterna.ir.expr import INTRINSICS, Binary, Buffer, Expr, Intrin, Load, Select, Unary, Var, wrap
from sterna.ir.graph import Function
from sterna.ir.printer import to_text
from sterna.ir.rewrite import loads, visit
from sterna.ir.simplify import simplify
from sterna.ops.attention import slot_elements

CONTEXT = Var("context", lo=0)  # tokens of a sequence that were cached before the step


@dataclass(frozen=True, slots=True)
class Cost:
    """Formulas over n, b, r, t, p and `context`."""

    flops: str
    bytes: str


def group_cost(group: Group) -> Cost:
    """Arithmetic of all Computes; inputs and outputs moved once, gathered tables by row."""
    flops: Expr = wrap(0)
    for compute in group.computes:
        flops = flops + _elements(compute) * _operations(compute)
    moved: Expr = wrap(0)
    for buffer in group.inputs:
        moved = moved + _read(buffer, group)
    for buffer in group.outputs:
        moved = moved + _size(buffer)
    return Cost(to_text(simplify(flops)), to_text(simplify(moved)))


def attention_cost(function: Function, heads: int, head_dim: int, cache: Buffer) -> Cost:
    """Two products with every token that a query sees; keys and values read once for all queries.

    Of the step's own tokens, shared by its b sequences alike, a query sees half in the mean and
    itself, or all where it also sees those after it.
    """
    head = function.bindings[-1]
    q, sequences = head.call.args[0], Var("b", lo=1)
    n, width = q.shape
    own = n // sequences
    causal = dict(head.call.attrs).get("causal") is not False
    seen_twice = CONTEXT * 2 + (own + 1 if causal else own * 2)
    flops = n * seen_twice * (2 * heads * head_dim)
    slot = slot_elements(cache.dtype, head_dim) * cache.dtype.bytes
    kv = (CONTEXT * sequences + n) * (cache.shape[2] * slot) * cache.shape[3]
    moved = kv + n * width * (2 * F32.bytes)
    return Cost(to_text(simplify(flops)), to_text(simplify(moved)))


def moving_cost(function: Function) -> Cost:
    """Kernels that only move: arguments with tokens in their first dim, twice."""
    moved: Expr = wrap(0)
    for value in function.params:
        if len(value.shape) == 2:
            moved = moved + value.shape[0] * value.shape[1] * (2 * value.dtype.bytes)
    return Cost("0", to_text(simplify(moved)))


def _elements(compute: Compute) -> Expr:
    total: Expr = wrap(1)
    for axis in (*compute.axes, *compute.over):
        total = total * axis.extent
    return total


def _operations(compute: Compute) -> int:
    """Operations on floats and on codes that are multiplied, the reduction's own included."""
    count = 1 if compute.over else 0
    for n in visit(compute.body):
        if isinstance(n, Binary | Unary | Select) and n.dtype.is_float:
            count += 1
        elif isinstance(n, Intrin):
            count += INTRINSICS[n.name].operations
    return count


def _size(buffer: Buffer) -> Expr:
    total: Expr = wrap(buffer.dtype.bytes)
    for dim in buffer.shape:
        total = total * dim
    return total


def _read(buffer: Buffer, group: Group) -> Expr:
    """A table read where data says moves only what each of those reads spans."""
    for compute in group.computes:
        for load in loads(compute.body):
            chosen = [any(isinstance(n, Load) for n in visit(i)) for i in load.index]
            if load.buffer is buffer and any(chosen):
                moved: Expr = compute.axes[0].extent * buffer.dtype.bytes
                for extent, by_data in zip(buffer.shape, chosen, strict=True):
                    moved = moved if by_data else moved * extent
                return moved
    return _size(buffer)
