"""What products see of their other factor: what `--activations` may be, and what it asks for.

In: what was asked for, a target and a scheme. Out: which pass the products go through, or a
sentence on why that cannot be. Passes and kernels know nothing of the option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sterna.base.artifact import Activations
from sterna.base.dtype import BF16, DType
from sterna.base.errors import UsageError
from sterna.base.target import Target, targets_with_products_of
from sterna.ir.graph import IRModule
from sterna.ops.unit_matmul import OPERANDS
from sterna.passes.quantize_activations import code_bits

_CODE_BITS: Mapping[str, int] = {"i16": 16, "i8": 8}


@dataclass(frozen=True, slots=True)
class Factors:
    """Bits of the codes that activations become, or the floats that they are rounded to.

    `paired`: such floats are multiplied by twos, on a CPU.
    """

    code_bits: int | None = None
    floats: DType | None = None
    paired: bool = False


def factors_of(asked: Activations | None, target: Target, scheme: str, compute: DType) -> Factors:
    """What products are made of; UsageError where target or scheme have no such thing.

    Without a word it is codes of 16 bits on CPUs where the scheme computes in 16, else f32.
    """
    if asked is None:
        asked = "i16" if compute.bits == 16 and target.pair_products else "f32"
    floats = OPERANDS.get(asked)
    if floats is None:
        return Factors(code_bits=_CODE_BITS.get(asked))
    paired = target.bf16_pairs and floats == BF16
    if not paired and (target.unit is None or asked not in target.unit.operands):
        raise UsageError(
            f"activations {asked} were asked for, but {target.spec} has no matrix unit or "
            f"instruction for them; possible are {', '.join(targets_with_products_of(asked))}; "
            "or leave the option out"
        )
    if compute.bits != 16:
        raise UsageError(
            f"activations {asked} were asked for, but {scheme} computes in {compute}; convert to a "
            "scheme that computes in 16 bits, or leave the option out"
        )
    return Factors(floats=floats, paired=paired)


def count_of_codes(module: IRModule, asked: Activations | None, scheme: str) -> Counter[int]:
    """How many products are of codes, by the bits of x's; UsageError if none are of 8 as asked."""
    found = code_bits(module)
    if asked == "i8" and not found[8]:
        raise UsageError(
            f"activations i8 were asked for, but no product of {scheme} can use "
            "them: they go with weights of 2 or 4 bits whose codes fill words; leave the option out"
        )
    return found


def count_of_floats(module: IRModule, factors: Factors, scheme: str) -> tuple[int, int]:
    """How many products are of such floats, and how many stay in f32; UsageError if none are.

    Nothing is counted where floats of 16 bits were not asked for.
    """
    if factors.floats is None:
        return (0, 0)
    found = products_of_floats(module)
    if not found[0]:
        groups = "even groups" if factors.paired else "groups of a multiple of 16"
        raise UsageError(
            f"activations {factors.floats} were asked for, but no product of {scheme} can use "
            f"them: they go with weights of that dtype, and with codes of 8 bits or fewer in "
            f"{groups}; leave the option out"
        )
    return found


def products_of_floats(module: IRModule) -> tuple[int, int]:
    """How many products are of floats of 16 bits, and how many of f32."""
    calls = [b.call.op for f in module.functions.values() for b in f.bindings]
    return calls.count("unit_matmul") + calls.count("bf16_matmul"), calls.count("matmul")
