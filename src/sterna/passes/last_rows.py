"""Compute only the rows that are asked for.

A step gives logits of a few rows, though every token passes through the layers. Knows which
operators compute each row from the same row of their arguments, and nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sterna.ir.expr import Const
from sterna.ir.graph import Binding, Function, IRModule, TensorType, Value, call
from sterna.ops import OPS, Kind
from sterna.ops.op import same_dim
from sterna.passes.def_use import readers, substituted

# Arguments whose row i, and no other, decides row i of the result.
_ROWS = {"matmul": (0,), "rms_norm": (0,), "layer_norm": (0,), "slice": (0,), "rope": (0, 1, 2)}


def last_rows(module: IRModule) -> IRModule:
    """Take rows before row-wise operators of the entry rather than after them.

    A value is narrowed only if all of its readers want the same rows of it.

    Before:
        n = dim(1, 64)
        r = dim(1, 64)

        @function
        def forward(x: f32[n, 8], rows: i32[r]):
            w = weight("norm.weight", f32[8])
            y: f32[n, 8] = rms_norm(x, w, eps=1e-05)
            z: f32[n, 8] = silu(y)
            out: f32[r, 8] = take(z, rows)
            return out

        entry("forward")
    After:
        n = dim(1, 64)
        r = dim(1, 64)

        @function
        def forward(x: f32[n, 8], rows: i32[r]):
            w = weight("norm.weight", f32[8])
            x_rows: f32[r, 8] = take(x, rows)
            y: f32[r, 8] = rms_norm(x_rows, w, eps=1e-05)
            out: f32[r, 8] = silu(y)
            return out

        entry("forward")
    """
    entry = module.functions[module.entry]
    return replace(module, functions={**module.functions, entry.name: _narrowed(entry)})


def _narrowed(function: Function) -> Function:
    wanted = _wanted(function)
    return _Narrowing(wanted).run(function) if wanted else function


def _wanted(function: Function) -> dict[Value, Value]:
    """The rows that suffice of each value, where that is not all of them."""
    read = readers(function)
    given = {*function.params, *function.weights}  # rows known before anything is computed
    wanted: dict[Value, Value] = {}
    for binding in reversed(function.bindings):
        if not _row_arguments(binding) or binding.outs[0] in function.results:
            continue
        out = binding.outs[0]
        rows = {_rows_read(reader, i, wanted) for reader, i in read.get(out, [])}
        only = rows.pop() if len(rows) == 1 else None
        if only in given and not isinstance(out.shape[0], Const):  # a static table is a weight
            wanted[out] = only
    return wanted


def _rows_read(reader: Binding, position: int, wanted: dict[Value, Value]) -> Value | None:
    """The rows that a read needs of its argument; None is all of them."""
    if reader.call.op == "take":
        return reader.call.args[1] if position == 0 else None
    return wanted.get(reader.outs[0]) if position in _row_arguments(reader) else None


def _row_arguments(binding: Binding) -> tuple[int, ...]:
    """Positions of the arguments to narrow with the result; none if rows depend on other rows."""
    op, args = binding.call.op, binding.call.args
    if op not in OPS or len(binding.outs) != 1 or len(binding.outs[0].shape) != 2:
        return ()
    out = binding.outs[0]
    if OPS[op].kind is not Kind.ELEMENTWISE:
        return _ROWS.get(op, ())
    whole = (i for i, arg in enumerate(args) if len(arg.shape) == 2)
    return tuple(i for i in whole if same_dim(args[i].shape[0], out.shape[0]))


@dataclass(slots=True)
class _Narrowing:
    """The new bindings of a Function, and what stands for the old values in them."""

    wanted: dict[Value, Value]
    taken: dict[tuple[Value, Value], Value] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)

    def run(self, function: Function) -> Function:
        renamed: dict[Value, Value] = {}
        for binding in function.bindings:
            binding = substituted(binding, renamed)
            args, outs = binding.call.args, binding.outs
            if outs and outs[0] in self.wanted:
                self.narrow(binding)
            elif binding.call.op == "take" and args[0] in self.wanted:
                renamed[outs[0]] = self.taken[args[0], args[1]]
            else:
                self.bindings.append(binding)
        results = tuple(renamed.get(value, value) for value in function.results)
        return replace(function, bindings=tuple(self.bindings), results=results)

    def narrow(self, binding: Binding) -> None:
        """Emit a row-wise operator for the wanted rows alone."""
        (out,), rows = binding.outs, self.wanted[binding.outs[0]]
        narrow, args = _row_arguments(binding), list(binding.call.args)
        for i in narrow:
            args[i] = self.take(args[i], rows)
        few = Value(out.name, _with_rows(out.type, rows))
        self.taken[out, rows] = few
        self.bindings.append(Binding((few,), replace(binding.call, args=tuple(args))))

    def take(self, value: Value, rows: Value) -> Value:
        """The wanted rows of a value, taken once."""
        if (value, rows) not in self.taken:
            few = Value(f"{value.name}_{rows.name}", _with_rows(value.type, rows))
            self.bindings.append(Binding((few,), call("take", value, rows)))
            self.taken[value, rows] = few
        return self.taken[value, rows]


def _with_rows(whole: TensorType, rows: Value) -> TensorType:
    return TensorType((rows.shape[0], *whole.shape[1:]), whole.dtype)
