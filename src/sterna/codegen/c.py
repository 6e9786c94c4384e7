"""PrimFunc -> C: kernels for CPUs, freestanding, over the vector extensions of gcc and clang.

A VECTOR loop becomes operations on one vector type as wide as the loop; the compiler splits it
into registers. UNROLL loops are written out here, so that each element of a register buffer
becomes a variable of its own. Indices are 64-bit; bounds decide between shifts and division.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sterna.base.dtype import BF16, BOOL, F16, F32, I32, I64, U32, DType
from sterna.base.errors import CodegenError
from sterna.codegen.c_math import C_NAMES, vector_name
from sterna.ir.expr import (
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    const_value,
    wrap,
)
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Seq, Stmt, Store
from sterna.ir.rewrite import free_vars, substitute, visit
from sterna.ir.simplify import simplify, simplify_stmt

_INDEX = (I32, I64)
_SCRATCH_ALIGN = 64


@dataclass(frozen=True, slots=True)
class CSource:
    """A rendered kernel: its text, what a launch needs, and what it uses."""

    name: str
    text: str
    phases: tuple[str, ...]  # one WorkFn each, run one after another
    items: tuple[str, ...]  # work items of each phase, in C over the dims
    scratch_bytes: int
    widths: frozenset[int]


def render(func: PrimFunc) -> CSource:
    """C text of a kernel: an argument struct, and a WorkFn for each outermost PARALLEL loop."""
    body = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    fields_ = [f"{C_NAMES[p.dtype]} *{name(p.name)};" for p in func.params]
    fields_ += [f"i64 {name(d.name)};" for d in func.dims]
    parts = [f"struct {func.name}_args {{ Pool *pool; {' '.join(fields_)} }};"]
    phases, items, scratch, widths = [], [], 0, set[int]()
    for i, stmt in enumerate(body):
        phase = func.name if len(body) == 1 else f"{func.name}_{i}"
        writer = _Writer(func)
        text, count = writer.phase(phase, stmt)
        parts.append(text)
        phases.append(phase)
        items.append(count)
        scratch = max(scratch, writer.scratch)
        widths |= writer.widths
    return CSource(
        func.name, "\n".join(parts), tuple(phases), tuple(items), scratch, frozenset(widths)
    )


def name(text: str) -> str:
    """A C identifier for a name of the IR."""
    return "".join(c if c.isalnum() else "_" for c in text)


@dataclass(slots=True)
class _Writer:
    """Renders one phase. `lanes` > 1 while inside a vector loop over `lane`."""

    func: PrimFunc
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    lane: Var | None = None
    lanes: int = 1
    scratch: int = 0
    widths: set[int] = field(default_factory=set)
    names: dict[Var, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    registers: dict[Buffer, int] = field(default_factory=dict)  # lanes a variable holds
    vector_lets: set[Var] = field(default_factory=set)

    def phase(self, title: str, stmt: Stmt) -> tuple[str, str]:
        used = {n.buffer for n in visit(stmt) if isinstance(n, Load | Store)}
        stored = {n.buffer for n in visit(stmt) if isinstance(n, Store)}
        dims = free_vars(stmt)
        for p in self.func.params:
            if p in used:
                const = "" if p in stored else "const "
                kind = C_NAMES[p.dtype]
                self.line(f"{const}{kind} *restrict {name(p.name)} = a->{name(p.name)};")
        for d in self.func.dims:
            self.names[d] = name(d.name)
            self.used.add(name(d.name))
            self.line(f"const i64 {name(d.name)} = a->{name(d.name)};")
            self.line(f"(void){name(d.name)};")
        _ = dims
        if isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL:
            count = self.expr(stmt.extent)
            var = self.declare(stmt.var)
            self.open(f"for (i64 {var} = begin; {var} < end; {var}++) {{")
            self.stmt(stmt.body)
            self.close()
        else:
            count = "1"
            self.stmt(stmt)
        head = (
            f"static void {title}(const void *args, i64 begin, i64 end, i32 tid) {{\n"
            f"    const struct {self.func.name}_args *a = args;\n"
            "    (void)begin, (void)end, (void)tid;\n"
        )
        if self.scratch:
            head += "    u8 *scratch = thread_scratch(a->pool, tid);\n"
        return head + "\n".join(self.lines) + "\n}", count

    # lines

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def open(self, text: str) -> None:
        self.line(text)
        self.depth += 1

    def close(self, text: str = "}") -> None:
        self.depth -= 1
        self.line(text)

    def declare(self, var: Var) -> str:
        base = name(var.name)
        text, i = base, 1
        while text in self.used:
            i += 1
            text = f"{base}_{i}"
        self.used.add(text)
        self.names[var] = text
        return text

    # statements

    def stmt(self, stmt: Stmt) -> None:
        match stmt:
            case Seq(stmts=stmts):
                for s in stmts:
                    self.stmt(s)
            case For():
                self.loop(stmt)
            case Store():
                self.store(stmt)
            case Let(var=var, value=value, body=body):
                self.let(var, value)
                self.stmt(body)
            case If(cond=cond, then=then, orelse=orelse):
                self.open(f"if ({self.expr(cond)}) {{")
                self.stmt(then)
                if orelse is not None:
                    self.close("} else {")
                    self.depth += 1
                    self.stmt(orelse)
                self.close()
            case Alloc(buffer=buffer, body=body):
                self.open("{")
                self.alloc(buffer, body)
                self.stmt(body)
                self.close()
            case _:
                raise CodegenError(f"C has no {type(stmt).__name__} statement")

    def loop(self, loop: For) -> None:
        if loop.kind is ForKind.UNROLL:
            extent = _number(loop.extent, "an unrolled loop")
            for i in range(extent):
                self.stmt(simplify_stmt(substitute(loop.body, {loop.var: wrap(i)})))
            return
        if loop.kind is ForKind.VECTOR and self.lane is None:
            self.vector(loop)
            return
        if loop.kind is ForKind.PARALLEL:
            raise CodegenError("a parallel loop inside another loop")
        extent_text = self.expr(loop.extent)
        var = self.declare(loop.var)
        self.open(f"for (i64 {var} = 0; {var} < {extent_text}; {var}++) {{")
        self.stmt(loop.body)
        self.close()

    def vector(self, loop: For) -> None:
        """A vector loop; where a guard depends on the lane, a scalar loop does the last part."""
        lanes = _number(loop.extent, "a vector loop")
        if lanes & (lanes - 1):
            raise CodegenError(f"a vector loop of {lanes} lanes; it must be a power of two")
        if lanes == 1:
            self.stmt(simplify_stmt(substitute(loop.body, {loop.var: wrap(0)})))
            return
        conditions, core = _guards(loop.body)
        outer = [c for c in conditions if loop.var not in free_vars(c)]
        guards = [c for c in conditions if loop.var in free_vars(c)]
        if outer:
            self.open(f"if ({' && '.join(self.expr(c) for c in outer)}) {{")
        if guards:
            last = {loop.var: wrap(lanes - 1)}
            whole = " && ".join(self.expr(simplify(substitute(g, last))) for g in guards)
            self.open(f"if ({whole}) {{")
        self.lane, self.lanes = loop.var, lanes
        self.widths.add(lanes)
        self.stmt(core)
        self.lane, self.lanes = None, 1
        if guards:
            self.close("} else {")
            self.depth += 1
            self.loop(For(loop.var, loop.extent, loop.body, ForKind.SERIAL))
            self.close()
        if outer:
            self.close()

    def let(self, var: Var, value: Expr) -> None:
        lanes = self.width(value)
        text = self.expr(value, lanes)
        kind = "i64" if lanes == 1 and value.dtype in _INDEX else vector_name(value.dtype, lanes)
        if lanes > 1:
            self.vector_lets.add(var)
        self.line(f"const {kind} {self.declare(var)} = {text};")

    def alloc(self, buffer: Buffer, body: Stmt) -> None:
        size = 1
        for d in buffer.shape:
            size *= _number(d, f"a dim of {buffer.name}")
        text = self.declare_buffer(buffer)
        if buffer.scope == "scratch":
            self.scratch = -(-self.scratch // _SCRATCH_ALIGN) * _SCRATCH_ALIGN
            kind = C_NAMES[buffer.dtype]
            self.line(f"{kind} *restrict {text} = ({kind} *)(void *)(scratch + {self.scratch});")
            self.scratch += size * buffer.dtype.bytes + 256
        elif buffer.scope == "register":
            lanes = _register_lanes(buffer, body, size)
            self.registers[buffer] = lanes
            if lanes > 1:
                self.widths.add(lanes)
            kind = vector_name(buffer.dtype, lanes)
            parts = ", ".join(f"{text}_{i}" for i in range(size // lanes))
            self.line(f"{kind} {parts};")
        else:
            self.line(f"_Alignas(64) {C_NAMES[buffer.dtype]} {text}[{size + 16}];")

    def declare_buffer(self, buffer: Buffer) -> str:
        var = Var(f"{buffer.name}")
        text = self.declare(var)
        self.buffer_names[buffer] = text
        return text

    buffer_names: dict[Buffer, str] = field(default_factory=dict)

    def store(self, s: Store) -> None:
        lanes = self.lanes if self.lane is not None else 1
        target, wide = self.place(s.buffer, s.index, store=True)
        if lanes > 1 and wide == 1:
            raise CodegenError(f"a vector loop stores to one element of {s.buffer.name}")
        self.line(f"{target} = {self.expr(s.value, wide)};")

    # places

    def flat(self, buffer: Buffer, index: tuple[Expr, ...]) -> Expr:
        flat: Expr = wrap(0)
        for d, i in zip(buffer.shape, index, strict=True):
            flat = flat * d + (i if i.dtype in _INDEX else Cast(I32, i))
        return simplify(flat)

    def place(
        self, buffer: Buffer, index: tuple[Expr, ...], *, store: bool = False
    ) -> tuple[str, int]:
        """(C lvalue, lanes) of an element, or of as many as the vector loop covers."""
        flat = self.flat(buffer, index)
        stride = self.stride(flat)
        if buffer in self.registers:
            return self.register(buffer, flat, stride)
        text = self.buffer_names.get(buffer, name(buffer.name))
        if stride == 0:
            return f"{text}[{self.expr(flat)}]", 1
        assert self.lane is not None, "a stride needs a vector loop"
        first = simplify(substitute(flat, {self.lane: wrap(0)}))
        if stride == 1:
            kind = vector_name(buffer.dtype, self.lanes)
            const = "" if store else "const "
            return f"*({const}{kind}u *)&{text}[{self.scalar(first)}]", self.lanes
        if store:
            raise CodegenError(f"a vector loop stores to {buffer.name} with stride {stride}")
        return self.gather(buffer, text, flat), self.lanes

    def gather(self, buffer: Buffer, text: str, flat: Expr) -> str:
        assert self.lane is not None, "a gather needs a vector loop"
        each = (simplify(substitute(flat, {self.lane: wrap(i)})) for i in range(self.lanes))
        parts = ", ".join(f"{text}[{self.scalar(e)}]" for e in each)
        return f"(({vector_name(buffer.dtype, self.lanes)}){{{parts}}})"

    def stride(self, flat: Expr) -> int | None:
        """Distance between the elements of neighbouring lanes; None when it varies."""
        if self.lane is None or self.lane not in free_vars(flat):
            return 0
        step = simplify(substitute(flat, {self.lane: self.lane + 1}) - flat)
        value = const_value(step)
        return int(value) if value is not None else None

    def register(self, buffer: Buffer, flat: Expr, stride: int | None) -> tuple[str, int]:
        held = self.registers[buffer]
        text = self.buffer_names[buffer]
        if stride == 1:
            assert self.lane is not None, "a stride needs a vector loop"
            first = const_value(simplify(substitute(flat, {self.lane: wrap(0)})))
            if held != self.lanes or first is None or int(first) % held:
                raise CodegenError(f"register buffer {buffer.name} is read at {flat!r}")
            return f"{text}_{int(first) // held}", held
        if stride != 0:
            raise CodegenError(f"register buffer {buffer.name} is read with stride {stride}")
        at = const_value(flat)
        if at is not None:
            i = int(at)
            return (f"{text}_{i}" if held == 1 else f"{text}_{i // held}[{i % held}]"), 1
        low, rest = _split_lane(flat, held)
        if low is None:
            raise CodegenError(f"register buffer {buffer.name} needs constant indices")
        return f"{text}_{low}[{self.scalar(rest)}]", 1

    # expressions

    def scalar(self, e: Expr) -> str:
        """An expression outside the vector loop's lanes."""
        lane, lanes = self.lane, self.lanes
        self.lane, self.lanes = None, 1
        text = self.expr(e)
        self.lane, self.lanes = lane, lanes
        return text

    def width(self, e: Expr) -> int:
        """Lanes an expression has: all of the vector loop's, or one."""
        if self.lane is None:
            return 1
        for n in visit(e):
            if isinstance(n, Var) and (n is self.lane or n in self.vector_lets):
                return self.lanes
            if isinstance(n, Load) and n.buffer in self.registers and n.index:
                continue
        return 1

    def expr(self, e: Expr, lanes: int = 1) -> str:
        """C text of `e` with `lanes` lanes; scalars are spread where lanes are asked for."""
        own = self.width(e)
        text = self._expr(e, own)
        if own == lanes:
            return text
        if own > lanes:
            raise CodegenError("a vector value where one element is needed")
        kind = e.dtype
        if kind in (F16, BF16):
            raise CodegenError("half values cannot be spread; convert them first")
        return f"splat_{C_NAMES[kind]}x{lanes}({text})"

    def _expr(self, e: Expr, lanes: int) -> str:
        match e:
            case Const():
                return _literal(e)
            case Var():
                return self.variable(e, lanes)
            case Load(buffer=buffer, index=index):
                text, _ = self.place(buffer, index)
                return f"(i64){text}" if lanes == 1 and e.dtype == I32 else text
            case Cast(dtype=dtype, a=a):
                return self.cast(dtype, a, lanes)
            case Select(cond=cond, a=a, b=b):
                return self.choose(cond, a, b, lanes)
            case Intrin(name="fma", args=args):
                parts = ", ".join(self.expr(x, lanes) for x in args)
                return f"fma_{vector_name(e.dtype, lanes)}({parts})"
            case Unary(op=op, a=a):
                return self.unary(op, a, lanes)
            case Binary(op=op, a=a, b=b):
                return self.binary(op, a, b, lanes)
        raise CodegenError(f"C has no form for {type(e).__name__}")

    def variable(self, v: Var, lanes: int) -> str:
        if v is self.lane:
            return f"((i32x{lanes}){{{', '.join(str(i) for i in range(lanes))}}})"
        if v not in self.names:
            raise CodegenError(f"variable {v.name} is not bound")
        return self.names[v]

    def cast(self, to: DType, a: Expr, lanes: int) -> str:
        text, source = self.expr(a, lanes), a.dtype
        suffix = "" if lanes == 1 else f"x{lanes}"
        if source in (F16, BF16) and to == F32:
            return f"f32_from_{source}{suffix}({text})"
        if source == F32 and to in (F16, BF16):
            return f"{to}_from_f32{suffix}({text})"
        if source == to or (to in _INDEX and source in _INDEX):
            return text
        if source.is_float and to.is_float:
            raise CodegenError(f"no direct conversion from {source} to {to}")
        if lanes == 1:
            return f"(({'i64' if to in _INDEX else C_NAMES[to]}){text})"
        if {source, to} <= {I32, U32}:
            return f"(({vector_name(to, lanes)})({text}))"
        return f"__builtin_convertvector({text}, {vector_name(to, lanes)})"

    def choose(self, cond: Expr, a: Expr, b: Expr, lanes: int) -> str:
        if lanes == 1 or self.width(cond) == 1:
            return f"({self.expr(cond)} ? {self.expr(a, lanes)} : {self.expr(b, lanes)})"
        kind = vector_name(a.dtype, lanes)
        return (
            f"choose_{kind}({self.expr(cond, lanes)}, {self.expr(a, lanes)}, {self.expr(b, lanes)})"
        )

    def unary(self, op: str, a: Expr, lanes: int) -> str:
        text = self.expr(a, lanes)
        if op == "neg":
            return f"(-{text})"
        if op == "not":
            return f"(!{text})" if lanes == 1 else f"(~{text})"
        if op == "invert":
            return f"(~{text})"
        if a.dtype != F32:
            raise CodegenError(f"{op} of {a.dtype}; convert to f32 first")
        return f"{op}_{vector_name(F32, lanes)}({text})"

    def binary(self, op: str, a: Expr, b: Expr, lanes: int) -> str:
        x, y = self.expr(a, lanes), self.expr(b, lanes)
        kind = a.dtype
        if kind in (F16, BF16):
            raise CodegenError(f"arithmetic in {kind}; convert to f32 first")
        if op in ("min", "max"):
            if lanes == 1 and kind in _INDEX:
                return f"({x} {'<' if op == 'min' else '>'} {y} ? {x} : {y})"
            return f"{op}_{vector_name(kind, lanes)}({x}, {y})"
        if op in ("and", "or"):
            return (
                f"({x} {'&&' if op == 'and' else '||'} {y})"
                if lanes == 1
                else (f"({x} {'&' if op == 'and' else '|'} {y})")
            )
        if op in ("//", "%") and kind.is_int:
            return self.divide(op, x, y, b, kind)
        return f"({x} {op} {y})"

    def divide(self, op: str, x: str, y: str, divisor: Expr, kind: DType) -> str:
        """Floor division: shifts and masks for powers of two, C's operators for others."""
        value = const_value(divisor)
        if value is not None and value > 0 and int(value) & (int(value) - 1) == 0:
            shift = int(value).bit_length() - 1
            return f"({x} >> {shift})" if op == "//" else f"({x} & {int(value) - 1})"
        if kind.kind == "int" and value is None:
            return f"({x} {'/' if op == '//' else '%'} {y})"  # dims and indices: never negative
        return f"({x} {'/' if op == '//' else '%'} {y})"


def _number(e: Expr, what: str) -> int:
    value = const_value(simplify(e))
    if value is None:
        raise CodegenError(f"{what} must have a size known at compile time")
    return int(value)


def _literal(c: Const) -> str:
    if c.dtype == F32:
        value = float(c.value)
        if value != value or value in (float("inf"), float("-inf")):
            raise CodegenError("a constant that is not finite")
        return f"{value.hex()}f" if value >= 0 else f"({value.hex()}f)"
    if c.dtype == BOOL:
        return "1" if c.value else "0"
    if c.dtype == U32:
        return f"{int(c.value)}u"
    return f"{int(c.value)}" if int(c.value) >= 0 else f"({int(c.value)})"


def _guards(body: Stmt) -> tuple[list[Expr], Stmt]:
    """The conditions around the whole body, and what they guard."""
    conditions: list[Expr] = []
    while isinstance(body, If) and body.orelse is None:
        conditions.append(body.cond)
        body = body.then
    return conditions, body


def _register_lanes(buffer: Buffer, body: Stmt, size: int) -> int:
    """Lanes that each variable of a register buffer holds: those of the loops that use it."""
    widths = {lanes for lanes, used in _vector_uses(body) if buffer in used}
    if len(widths) > 1:
        raise CodegenError(f"register buffer {buffer.name} is used with lanes {sorted(widths)}")
    lanes = widths.pop() if widths else 1
    if size % lanes:
        raise CodegenError(f"register buffer {buffer.name} has {size} elements for {lanes} lanes")
    return lanes


def _vector_uses(body: Stmt) -> Iterator[tuple[int, set[Buffer]]]:
    for n in visit(body):
        if isinstance(n, For) and n.kind is ForKind.VECTOR:
            lanes = _number(n.extent, "a vector loop")
            used = {
                m.buffer
                for m in visit(n.body)
                if isinstance(m, Load | Store) and any(n.var in free_vars(i) for i in m.index)
            }
            yield lanes, used


def _split_lane(flat: Expr, held: int) -> tuple[int | None, Expr]:
    """flat = held * i + rest with 0 <= rest < held: the variable and the lane within it."""
    from_ = simplify(flat // held)
    value = const_value(from_)
    return (int(value) if value is not None else None), simplify(flat % held)
