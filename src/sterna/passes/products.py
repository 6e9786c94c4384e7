"""What products see of their other factor: what `--activations` may be, and what it asks for.

In: what was asked for, a target and a scheme. Out: which pass the products go through, or a
sentence on why that cannot be. Passes and kernels know nothing of the option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sterna.base.dtype import DType
from sterna.base.errors import UsageError
from sterna.base.target import Target, targets_with_unit
from sterna.ir.graph import IRModule
from sterna.ops.unit_matmul import OPERANDS
from sterna.passes.unit_products import products_by_unit

# Codes of 16 or 8 bits; floats of 16 bits, for matrix units; or what they are. Without a word it
# is codes of 16 bits on CPUs where the scheme computes in 16, and f32 elsewhere.
Activations = Literal["i16", "i8", "f16", "bf16", "f32"]
_CODE_BITS: Mapping[str, int] = {"i16": 16, "i8": 8}


@dataclass(frozen=True, slots=True)
class Factors:
    """Bits of the codes that activations become, or the floats that they are rounded to."""

    code_bits: int | None = None
    floats: DType | None = None


def factors_of(asked: Activations | None, target: Target, scheme: str, compute: DType) -> Factors:
    """What products are made of; UsageError where target or scheme have no such thing."""
    if asked is None:
        asked = "i16" if compute.bits == 16 and target.pair_products else "f32"
    floats = OPERANDS.get(asked)
    if floats is None:
        return Factors(code_bits=_CODE_BITS.get(asked))
    if target.unit is None or asked not in target.unit.operands:
        raise UsageError(
            f"activations {asked} were asked for, but {target.spec} has no matrix unit that takes "
            f"them; possible are {', '.join(targets_with_unit(asked))}; or leave the option out"
        )
    if compute.bits != 16:
        raise UsageError(
            f"activations {asked} were asked for, but {scheme} computes in {compute}; convert to a "
            "scheme that computes in 16 bits, or leave the option out"
        )
    return Factors(floats=floats)


def count_by_unit(module: IRModule, factors: Factors, scheme: str) -> tuple[int, int]:
    """How many products the unit makes, and how many stay in f32; UsageError where it makes none.

    Nothing is counted where units were not asked for.
    """
    if factors.floats is None:
        return (0, 0)
    found = products_by_unit(module)
    if not found[0]:
        raise UsageError(
            f"activations {factors.floats} were asked for, but no product of {scheme} can use "
            "them: they go with weights of that dtype, and with codes of 8 bits or fewer in groups "
            "of a multiple of 16; leave the option out"
        )
    return found
