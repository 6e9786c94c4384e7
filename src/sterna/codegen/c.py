"""PrimFunc -> C: kernels for CPUs, freestanding, over the vector extensions of gcc and clang.

A VECTOR loop becomes operations on one vector type as wide as the loop; the compiler splits it
into registers. UNROLL loops are written out here, so that each element of a register buffer
becomes a variable of its own. Kernels are static functions over an argument struct; who calls
them, with which items and on which threads, is the launcher's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sterna.base.artifact import Phase
from sterna.base.dtype import BOOL
from sterna.base.errors import CodegenError
from sterna.codegen.c_expr import ExprWriter, Value, c_type, storage, whole_number
from sterna.codegen.c_names import Names, name
from sterna.codegen.fragments import is_move
from sterna.ir.bounds import Intervals
from sterna.ir.expr import Binary, Buffer, Expr, Intrin, Load, Var, const_value, row_major, wrap
from sterna.ir.interpret import SLACK
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store
from sterna.ir.printer import to_text
from sterna.ir.rewrite import children, free_vars, substitute, visit
from sterna.ir.simplify import linear, simplify, simplify_stmt

__all__ = ["CSource", "name", "render"]

_ALIGN = 64
_LARGEST_LOCAL = 1024  # bytes; larger arrays go to scratch memory, for stacks are short


@dataclass(frozen=True, slots=True)
class CSource:
    """A rendered kernel: its text, what a launch needs, and what it uses.

    The struct `<name>_args` holds `Pool *pool`, a pointer for each parameter and an i64 for each
    dim, in this order.
    """

    name: str
    text: str
    phases: tuple[str, ...]  # one WorkFn each, run one after another
    items: tuple[str, ...]  # work items of each phase, as a formula over the dims
    counts: tuple[str, ...]  # the same in C
    scratch_bytes: int  # for each thread
    widths: frozenset[int]  # lane counts, for the prelude
    dims: tuple[str, ...]
    launches: tuple[Phase, ...] = ()  # an entry point is one function


def render(func: PrimFunc) -> CSource:
    """C text of a kernel: an argument struct, and a WorkFn for each outermost PARALLEL loop."""
    body = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    title = name(func.name)
    names = Names()
    params = {p: names.new(p.name) for p in func.params}
    dims = {d: names.new(d.name) for d in func.dims}
    fields = ["Pool *pool;", *(f"{storage(p.dtype, 1)} *{c};" for p, c in params.items())]
    fields += [f"i64 {c};" for c in dims.values()]
    parts = [f"struct {title}_args {{ {' '.join(fields)} }};"]
    phases, items, counts, scratch, widths = [], [], [], 0, set[int]()
    for i, stmt in enumerate(body):
        phase = title if len(body) == 1 else f"{title}_{i}"
        writer = _Writer(names.copy())
        text, many = writer.phase((title, phase), simplify_stmt(stmt), params, dims)
        parts.append(text)
        phases.append(phase)
        items.append(to_text(many))
        counts.append(writer.out.text(many))
        scratch = max(scratch, writer.most_scratch)
        widths |= writer.widths
    called = tuple(d.name for d in func.dims)
    text = "\n".join(parts)
    every = (tuple(phases), tuple(items), tuple(counts))
    return CSource(title, text, *every, scratch, frozenset(widths), called)


@dataclass(slots=True)
class _Writer:
    """Renders one phase, line by line."""

    unique: Names
    out: ExprWriter = field(default_factory=ExprWriter)
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    scratch: int = 0
    most_scratch: int = 0
    widths: set[int] = field(default_factory=set)

    def phase(
        self, titles: tuple[str, str], stmt: Stmt, params: dict[Buffer, str], dims: dict[Var, str]
    ) -> tuple[str, Expr]:
        """(text of the WorkFn, number of its work items)."""
        self.arguments(stmt, params, dims)
        many: Expr = wrap(1)
        if isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL:
            many = stmt.extent
            var = self.loop_variable(stmt)
            self.open(f"for (i64 {var} = begin; {var} < end; {var}++) {{")
            self.stmt(stmt.body)
            self.close()
        else:
            self.line("if (begin >= end) return;")
            self.stmt(stmt)
        head = [
            f"static void {titles[1]}(const void *args, i64 begin, i64 end, i32 tid) {{",
            f"    const struct {titles[0]}_args *a = args;",
            "    (void)tid;",
        ]
        if self.most_scratch:
            head.append("    u8 *scratch = thread_scratch(a->pool, tid);")
        return "\n".join([*head, *self.lines, "}"]), many

    def arguments(self, stmt: Stmt, params: dict[Buffer, str], dims: dict[Var, str]) -> None:
        """Locals for the parameters and dims that a phase uses."""
        used = {n.buffer for n in visit(stmt) if isinstance(n, Load | Store)}
        stored = {n.buffer for n in visit(stmt) if isinstance(n, Store)}
        for p, text in params.items():
            self.out.buffers[p] = text
            if p in used:
                const = "" if p in stored else "const "
                self.line(f"{const}{storage(p.dtype, 1)} *restrict {text} = a->{text};")
        for d, text in dims.items():
            self.out.names[d] = text
            self.line(f"const i64 {text} = a->{text};")

    # Lines and names.

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def open(self, text: str) -> None:
        self.line(text)
        self.depth += 1

    def close(self, text: str = "}") -> None:
        self.depth -= 1
        self.line(text)

    def declare(self, var: Var) -> str:
        text = self.unique.new(var.name)
        self.out.names[var] = text
        return text

    # Statements.

    def stmt(self, stmt: Stmt, *, last: bool = True) -> None:
        """`last`: nothing follows in the block, so declarations need no block of their own."""
        match stmt:
            case Seq(stmts=stmts):
                for i, s in enumerate(stmts):
                    self.stmt(s, last=last and i == len(stmts) - 1)
            case For():
                self.loop(stmt)
            case Store():
                self.store(stmt)
            case Let():
                self.let(stmt, last)
            case Prefetch(place=place):
                flat = self.out.scalar(self.out.flat(place.buffer, place.index))
                self.line(f"__builtin_prefetch(&{self.out.array(place.buffer)}[{flat}]);")
            case If():
                self.branch(stmt)
            case Alloc():
                self.alloc(stmt, last)
            case _:
                raise CodegenError(f"C kernels have no {type(stmt).__name__} statement")

    def branch(self, stmt: If) -> None:
        self.open(f"if ({self.out.text(stmt.cond)}) {{")
        self.stmt(stmt.then)
        if stmt.orelse is not None:
            self.close("} else {")
            self.depth += 1
            self.stmt(stmt.orelse)
        self.close()

    def let(self, stmt: Let, last: bool) -> None:
        var, value = stmt.var, stmt.value
        text, lanes = self.out.value(value)
        self.out.ranges[var] = Intervals(self.out.ranges)(value)
        self.line(f"const {c_type(value.dtype, lanes)} {self.declare(var)} = {text};")
        self.out.wide.pop(var, None)
        if lanes > 1:
            self.out.wide[var] = lanes
        self.stmt(stmt.body, last=last)

    def loop(self, loop: For) -> None:
        if loop.kind is ForKind.UNROLL:
            for i in range(whole_number(loop.extent, "an unrolled loop")):
                self.turn(loop, i)
        elif loop.kind is ForKind.VECTOR and self.out.lane is None:
            self.vector(loop)
        elif loop.kind is ForKind.MATRIX:
            self.rows_at_once(loop)
        elif loop.kind is ForKind.PARALLEL:
            raise CodegenError(f"parallel loop {loop.var.name} is not outermost")
        else:
            self.serial(loop)

    def turn(self, loop: For, i: int) -> None:
        body = substitute(loop.body, {loop.var: wrap(i)})
        self.stmt(self.out.simplifier.walker.stmt(body), last=False)

    def loop_variable(self, loop: For) -> str:
        _, most = Intervals(self.out.ranges)(loop.extent)
        self.out.ranges[loop.var] = (0, max(0, most - 1))
        return self.declare(loop.var)

    def serial(self, loop: For) -> None:
        end = self.out.text(loop.extent)
        if not isinstance(loop.extent, Var) and const_value(loop.extent) is None:
            text, end = end, self.unique.new(f"{loop.var.name}_end")
            self.line(f"const i64 {end} = {text};")
        var = self.loop_variable(loop)
        self.open(f"for (i64 {var} = 0; {var} < {end}; {var}++) {{")
        self.stmt(loop.body)
        self.close()

    def vector(self, loop: For) -> None:
        """A vector loop; where guards fail for some lanes, a scalar loop does the rest."""
        lanes = whole_number(loop.extent, "a vector loop")
        if lanes < 1 or lanes & (lanes - 1):
            raise CodegenError(f"a vector loop of {lanes} lanes; it must be a power of two")
        if lanes == 1:
            self.turn(loop, 0)
            return
        guards, body = _lane_guards(loop)
        holds = [_for_all_lanes(g, loop.var, lanes) for g in guards]
        if None in holds:
            self.serial(For(loop.var, loop.extent, loop.body))
            return
        if guards:
            whole = " && ".join(self.out.text(g) for g in holds if g is not None)
            self.open(f"if ({whole}) {{")
        self.vector_body(loop.var, lanes, body)
        if guards:
            self.close("} else {")
            self.depth += 1
            self.serial(For(loop.var, loop.extent, loop.body))
            self.close()

    def rows_at_once(self, loop: For) -> None:
        """Two rows of sums in one operation; they begin one by one."""
        if is_move(loop):
            for i in range(whole_number(loop.extent, "a matrix loop")):
                self.turn(loop, i)
            return
        word, vector, sums, x, weight = _tile(loop)
        lanes = whole_number(vector.extent, "a vector loop")
        self.widths.add(lanes)

        def at(e: Expr, row: int, step: int) -> Expr:
            return self.out.simplifier.expr(
                substitute(e, {loop.var: wrap(row), word.var: wrap(step)})
            )

        rows = []
        for row in range(2):
            near, far = (
                self.out.flat(x.buffer, tuple(at(i, row, step) for i in x.index))
                for step in range(2)
            )
            if const_value(self.out.simplifier.expr(far - near)) != 1:
                raise CodegenError(f"{x.buffer.name}: two words of a row do not lie side by side")
            rows.append(f"&{self.out.array(x.buffer)}[{self.out.scalar(near)}]")
        self.out.lane, self.out.lanes = vector.var, lanes
        kept = []
        for row in range(2):
            flat = self.out.flat(sums.buffer, tuple(at(i, row, 0) for i in sums.index))
            text, held = self.out.register(sums.buffer, flat, self.out.stride(flat))
            if held != lanes:
                raise CodegenError(f"{sums.buffer.name}: a row of sums is no register")
            kept.append(f"&{text}")
        words = [self.out.text(at(weight, 0, step), lanes) for step in range(2)]
        self.out.lane, self.out.lanes = None, 1
        self.line(f"tile_i32x{lanes}({', '.join((*kept, *rows, *words))});")

    def vector_body(self, lane: Var, lanes: int, body: Stmt) -> None:
        self.widths.add(lanes)
        self.out.lane, self.out.lanes = lane, lanes
        self.stmt(body)
        self.out.lane, self.out.lanes = None, 1

    # Memory.

    def alloc(self, stmt: Alloc, last: bool) -> None:
        buffer, outer = stmt.buffer, self.scratch
        size = 1
        for d in buffer.shape:
            size *= whole_number(d, f"a dim of {buffer.name}")
        lanes = _register_lanes(stmt, size) if buffer.scope == "register" else None
        kind = storage(buffer.dtype, 1)
        text = self.unique.new(buffer.name, 0 if lanes is None else size // lanes)
        self.out.buffers[buffer] = text
        if not last:
            self.open("{")
        if lanes is not None:
            self.out.registers[buffer] = lanes
            variables = ", ".join(f"{text}_{i}" for i in range(size // lanes))
            self.widths |= {lanes} - {1}
            self.line(f"{storage(buffer.dtype, lanes)} {variables};")
        elif buffer.scope == "scratch" or size * buffer.dtype.bytes > _LARGEST_LOCAL:
            self.line(f"{kind} *restrict {text} = ({kind} *)(void *)(scratch + {self.scratch});")
            self.scratch += -(-(size + SLACK) * buffer.dtype.bytes // _ALIGN) * _ALIGN
            self.most_scratch = max(self.most_scratch, self.scratch)
        else:
            self.line(f"_Alignas({_ALIGN}) {kind} {text}[{size + SLACK}];")
        self.stmt(stmt.body)
        if not last:
            self.close()
        self.scratch = outer

    def store(self, s: Store) -> None:
        value, dtype = self.out.value(s.value), s.buffer.dtype
        flat = self.out.flat(s.buffer, s.index)
        stride = self.out.stride(flat)
        if s.buffer in self.out.registers:
            target, lanes = self.out.register(s.buffer, flat, stride)
        elif stride == 0:
            target, lanes = f"{self.out.array(s.buffer)}[{self.out.scalar(flat)}]", 1
        elif stride == 1:
            target, lanes = self.out.vector_at(s.buffer, flat), self.out.lanes
        else:
            self.scatter(s.buffer, flat, value)
            return
        if lanes == 1 and self.out.lane is not None:
            raise CodegenError(f"a vector loop stores to one element of {s.buffer.name}")
        self.line(f"{target} = {_stored(self.out.spread(value, dtype, lanes), s.buffer, lanes)};")

    def scatter(self, buffer: Buffer, flat: Expr, value: Value) -> None:
        """One store for each lane, for places that are no neighbours."""
        lanes, array = self.out.lanes, self.out.array(buffer)
        text = _stored(self.out.spread(value, buffer.dtype, lanes), buffer, lanes)
        each = self.unique.new("each")
        self.line(f"const {storage(buffer.dtype, lanes)} {each} = {text};")
        for i in range(lanes):
            place = self.out.scalar(self.out.at_lane(flat, i))
            self.line(f"{array}[{place}] = {each}[{i}];")


def _tile(loop: For) -> tuple[For, For, Load, Load, Expr]:
    """(loop over two words, vector loop, sums, x, weight) of two rows' sums of dot4.

    CodegenError for anything else: nothing but that is rendered for a matrix loop.
    """
    unfit = CodegenError("a matrix loop of a CPU sums bytes of two rows, two words of each")
    word = loop.body
    vector = word.body if isinstance(word, For) and word.kind is ForKind.UNROLL else None
    store = vector.body if isinstance(vector, For) and vector.kind is ForKind.VECTOR else None
    value = store.value if isinstance(store, Store) else None
    if not isinstance(value, Binary) or value.op != "+" or not isinstance(value.b, Intrin):
        raise unfit
    assert isinstance(word, For), "just matched"
    assert isinstance(vector, For), "just matched"
    sums, (x, weight) = value.a, value.b.args
    two = const_value(loop.extent) == const_value(word.extent) == 2
    alike = two and value.b.name == "dot4" and loop.var not in free_vars(weight)
    if not alike or not isinstance(sums, Load) or not isinstance(x, Load):
        raise unfit
    return word, vector, sums, x, weight


def _stored(text: str, buffer: Buffer, lanes: int) -> str:
    """A value as its buffer keeps it: a mask becomes bytes of 0 and 1."""
    if buffer.dtype == BOOL and lanes > 1:
        return f"__builtin_convertvector({text} & 1, {storage(BOOL, lanes)})"
    return text


def _lane_guards(loop: For) -> tuple[list[Expr], Stmt]:
    """Conditions on the lane around the whole body, and the body without them."""
    guards: list[Expr] = []
    body = loop.body
    while isinstance(body, If) and body.orelse is None and loop.var in free_vars(body.cond):
        guards += _conjuncts(body.cond)
        body = body.then
    return guards, body


def _conjuncts(cond: Expr) -> list[Expr]:
    if isinstance(cond, Binary) and cond.op == "and":
        return [*_conjuncts(cond.a), *_conjuncts(cond.b)]
    return [cond]


def _for_all_lanes(guard: Expr, lane: Var, lanes: int) -> Expr | None:
    """A condition without the lane under which the guard holds in every lane, if one is known."""
    if not isinstance(guard, Binary) or guard.op not in ("<", "<=") or not guard.a.dtype.is_int:
        return None
    terms, _ = linear(guard.a - guard.b)
    if any(lane in free_vars(atom) for atom in terms if atom is not lane):
        return None
    worst = lanes - 1 if terms.get(lane, 0) > 0 else 0
    return simplify(substitute(guard, {lane: wrap(worst)}))


def _register_lanes(alloc: Alloc, size: int) -> int | None:
    """Lanes of each variable of a register buffer; None if it must be an array in memory."""
    widths = set[int]()
    for index, unrolled, lane, lanes in _uses(alloc.body, alloc.buffer, frozenset(), None, 1):
        terms, constant = linear(row_major(alloc.buffer.shape, index))
        if not all(free_vars(a) <= unrolled or a is lane for a in terms):
            return None
        if lane is None or lane not in terms:
            continue
        others = [constant, *(c for a, c in terms.items() if a is not lane)]
        if terms[lane] != 1 or any(c % lanes for c in others):
            return None
        widths.add(lanes)
    if len(widths) > 1:
        return None
    lanes = widths.pop() if widths else 1
    return None if size % lanes else lanes


def _uses(
    stmt: Stmt | Expr, buffer: Buffer, unrolled: frozenset[Var], lane: Var | None, lanes: int
) -> Iterator[tuple[tuple[Expr, ...], frozenset[Var], Var | None, int]]:
    """Each index of the buffer, with the unrolled variables and the vector loop around it."""
    if isinstance(stmt, For):
        if stmt.kind in (ForKind.UNROLL, ForKind.MATRIX):
            unrolled |= {stmt.var}
        elif stmt.kind is ForKind.VECTOR and lane is None:
            lane, lanes = stmt.var, whole_number(stmt.extent, "a vector loop")
            unrolled |= {lane} if lanes == 1 else frozenset()
    if isinstance(stmt, Load | Store) and stmt.buffer is buffer:
        yield stmt.index, unrolled, lane, lanes
    for child in children(stmt):
        yield from _uses(child, buffer, unrolled, lane, lanes)
