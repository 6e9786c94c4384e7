"""The passes over the graph in order, and the driver that runs any such list.

In: a traced module and the family's table of weights stored stacked. Out: the module that fusion
into kernels starts from. The driver verifies after every pass and names the pass that broke a
rule; passes themselves neither verify, nor print, nor time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from sterna.base.artifact import AdapterRoom
from sterna.base.dtype import DType
from sterna.base.errors import InvalidIR
from sterna.ir.graph import Call, IRModule, TensorType
from sterna.ir.printer import to_text
from sterna.ir.verify import verify
from sterna.ops import op
from sterna.passes.add_adapters import add_adapters
from sterna.passes.bf16_products import bf16_products
from sterna.passes.cleanup import cleanup
from sterna.passes.combine_matmul import combine_matmul
from sterna.passes.fuse_rope_append import fuse_rope_append
from sterna.passes.last_rows import last_rows
from sterna.passes.quantize_activations import quantize_activations
from sterna.passes.unit_products import unit_products

Pass = tuple[str, Callable[[IRModule], IRModule]]
Dump = Callable[[str, str], None]


def graph_passes(
    fused: Mapping[str, tuple[str, ...]],
    *,
    code_bits: int | None,
    floats: DType | None = None,
    paired: bool = False,
    adapters: tuple[AdapterRoom, DType] | None = None,
    most_buffers: int | None = None,
) -> tuple[Pass, ...]:
    """The passes that come before fusion; `fused` is the family's FUSED table.

    `code_bits`: packed weights are multiplied as codes, with activations of so many bits; None:
    as floats. `floats`: by the matrix unit, with activations of this dtype, or `paired`, by a CPU's
    instructions. `adapters`: what room there is for them, and the dtype of their factors.
    `most_buffers`: how many a kernel may bind, if there is a limit.
    """
    products: tuple[Pass, ...] = ()
    low_rank: tuple[Pass, ...] = ()
    if adapters is not None:
        room, dtype = adapters
        low_rank = (("add_adapters", partial(add_adapters, room=room, dtype=dtype)),)
    if code_bits is not None:
        products = (("quantize_activations", partial(quantize_activations, bits=code_bits)),)
    if paired:
        products = (("bf16_products", bf16_products),)
    elif floats is not None:
        products = (("unit_products", partial(unit_products, operands=floats)),)
    return (
        *low_rank,  # sees weights under the names that adapters know: none is stacked yet
        ("last_rows", last_rows),  # sees norm and head as traced: none is stacked or shared yet
        (
            "combine_matmul",
            partial(combine_matmul, fused=fused),
        ),  # readers get slices of one matmul
        *products,  # one product a stack, not one a part
        (
            "fuse_rope_append",
            partial(fuse_rope_append, most_buffers=most_buffers),
        ),  # rope reads those slices, not what they lie in
        ("cleanup", cleanup),  # fusion counts readers, so equal and dead bindings must be gone
    )


def run(module: IRModule, passes: Iterable[Pass], dump: Dump | None = None) -> IRModule:
    """The module after all passes, each checked against the rules of the IR and the operators.

    `dump(name, text)` gets the module's text as "00_trace", then "01_last_rows" and so on.
    Raises InvalidIR, naming the pass, when one leaves a module that is not valid.
    """
    _check("trace", module)
    if dump is not None:
        dump("00_trace", to_text(module))
    for number, (name, transform) in enumerate(passes, 1):
        module = transform(module)
        _check(name, module)
        if dump is not None:
            dump(f"{number:02}_{name}", to_text(module))
    return module


def infer(call: Call) -> tuple[TensorType, ...]:
    """The result types of an operator's call, by the table of operators."""
    return op(call.op).infer(tuple(arg.type for arg in call.args), dict(call.attrs))


def _check(name: str, module: IRModule) -> None:
    try:
        verify(module, infer)
    except InvalidIR as error:
        raise InvalidIR(f"after pass {name}: {error}") from error
