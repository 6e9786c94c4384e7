"""Kernels for work groups in languages of C's family: what they have in common.

In: a PrimFunc. Out: a function for each phase, with the launch that runs it. A language is a
subclass of `CStyle` that spells what differs: qualifiers, built-in indices, barriers, signatures.
Values are scalars; f16 and bf16 are carried as their bits until they are converted; indices are
32-bit, but for buffers of unknown size where the language has 64 bits.

Functions such as `exp_f32` come with the prelude (see c_math), so that every target computes the
same polynomials as the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar

from sterna.base.artifact import Phase
from sterna.base.dtype import F16, F32, I32, DType
from sterna.base.errors import CodegenError
from sterna.base.target import MatrixUnit, Target
from sterna.codegen.c_names import Names, name
from sterna.codegen.cstyle_expr import ExprStyle
from sterna.codegen.fragments import fragments, has_matrix, is_move, operands
from sterna.codegen.lanes import Exchange, Nest
from sterna.codegen.octets import in_octets, octet_column, octet_shape
from sterna.codegen.simt import (
    GroupKernel,
    extents,
    group_kernel,
    nest_of,
    private_index,
    private_shape,
)
from sterna.codegen.sizes import elements, size_of
from sterna.codegen.vectors import Copy, Kinds, vector_copy
from sterna.ir.bounds import Interval, Intervals
from sterna.ir.expr import Buffer, Expr, Load, Var, const_value, equals, row_major, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, PrimFunc, Seq, Stmt, Store, Sync
from sterna.ir.printer import to_text
from sterna.ir.rewrite import free_vars, visit
from sterna.ir.simplify import Simplifier, simplify, simplify_stmt


@dataclass(frozen=True, slots=True)
class GroupSource:
    """A rendered kernel: a function for each launch."""

    text: str
    items: tuple[str, ...]
    launches: tuple[Phase, ...]
    dims: tuple[str, ...]
    scratch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes: buffers in order, with whether it stores to each, and dims."""

    symbol: str
    buffers: tuple[tuple[Buffer, str, bool], ...]
    dims: tuple[str, ...]
    threads: int


@dataclass(slots=True)
class CStyle(ExprStyle):
    """Renders one phase; subclasses spell the language. Made fresh for each phase."""

    VECTORS: ClassVar[Kinds] = frozenset()  # that a load brings into registers

    kernel: GroupKernel
    unique: Names = field(default_factory=Names)
    lines: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)  # declared at the function's head
    before: list[str] = field(default_factory=list)  # declared outside it
    buffers: dict[Buffer, str] = field(default_factory=dict)
    large: frozenset[Buffer] = frozenset()
    whole: set[Buffer] = field(default_factory=set)  # bound in parts
    unit: MatrixUnit | None = None
    octets: frozenset[Buffer] = frozenset()  # of the unit's operands, as it wants them
    nest: Nest = ()
    depth: int = 1
    lanes: int = 0  # threads side by side that it counts on
    simplifier: Simplifier = field(default_factory=Simplifier)

    # What a language spells its own way.

    @classmethod
    def prepared(cls, stmt: Stmt) -> Stmt:
        """The loops of a phase as they are written, before they are shared among threads."""
        return stmt

    def head(self, s: Signature) -> str:
        """The function's first line, up to its opening brace."""
        raise NotImplementedError

    def shared(self, dtype: DType, title: str, size: int) -> str:
        """The declaration of an array that a group's threads share."""
        raise NotImplementedError

    def shared_bytes(self, buffer: Buffer) -> int:
        """What an element of such an array takes."""
        return buffer.dtype.bytes

    def shared_elements(self, buffer: Buffer) -> int:
        shape = octet_shape(buffer) if buffer in self.octets else buffer.shape
        return elements(shape, buffer.name)

    def multiplier(self, title: str, unit: MatrixUnit, dtype: DType) -> None:
        """Declare what multiplies, where the prelude does not: a unit of several sizes."""

    def group_index(self) -> str:
        raise NotImplementedError

    def thread_index(self) -> str:
        raise NotImplementedError

    def barrier(self) -> str:
        raise NotImplementedError

    def swapped(self, value: str, distance: int) -> str:
        """The f32 that the thread whose number differs in this bit has for `value`."""
        return f"swap_f32({value}, {distance})"

    def unrolled(self) -> str:
        """A line before a loop that is written out; "" where compilers know by themselves."""
        return ""

    # The function.

    def function(self, s: Signature) -> str:
        head = [self.head(s)]
        self.beyond(self.kernel.groups)
        if not self.kernel.group.name or self.kernel.group in free_vars(self.kernel.body):
            self.ranges[self.kernel.group] = (0, float("inf"))
            self.constant(I32, self.declare(self.kernel.group), self.group_index())
        if self.kernel.threads > 1:
            self.constant(I32, self.declare(TID), self.thread_index())
        for buffer in self.kernel.shared:
            title = self.buffers[buffer] = self.identifier(buffer.name)
            size = self.shared_elements(buffer)
            head += self.outside(self.shared(buffer.dtype, title, size))
        self.statement(self.kernel.body, last=True)
        head += ["    " + text for text in self.arrays]
        return "\n".join([*self.before, *head, *self.lines, "}"])

    def outside(self, declaration: str) -> list[str]:
        """A shared array's declaration, where the language wants it."""
        return ["    " + declaration]

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def open(self, text: str) -> None:
        self.line(text)
        self.depth += 1

    def close(self, text: str = "}") -> None:
        self.depth -= 1
        self.line(text)

    # Blocks: each that is begun has an `end`.

    def scope(self) -> None:
        """Names declared from here on are known up to the end."""
        self.open("{")

    def when(self, cond: str) -> None:
        self.open(f"if ({cond}) {{")

    def otherwise(self) -> None:
        self.close("} else {")
        self.depth += 1

    def count(self, var: str, end: str, kind: ForKind) -> None:
        if kind is ForKind.UNROLL and (hint := self.unrolled()):
            self.line(hint)
        self.open(self.counting(var, end))

    def end(self) -> None:
        self.close()

    def beyond(self, groups: Expr) -> None:
        """Leave the function where the group's number is none, in a language with grids."""

    def parts(self, buffer: Buffer, title: str, target: Target) -> list[str]:
        """What a buffer is bound as: itself, or parts of it that are read through a function."""
        if not target.split_buffers or any(const_value(d) is None for d in buffer.shape):
            return [title]
        size = elements(buffer.shape, buffer.name) * buffer.dtype.bytes
        if size <= target.most_buffer_bytes:
            return [title]
        names = [
            self.identifier(f"{title}_part") for _ in range(-(-size // target.most_buffer_bytes))
        ]
        self.whole.add(buffer)
        self.joined(buffer, title, names, target.most_buffer_bytes)
        return names

    def joined(self, buffer: Buffer, title: str, parts: Sequence[str], size: int) -> None:
        """Declare the function `title` of an element's number, over parts of `size` bytes each."""
        raise NotImplementedError

    def element(self, buffer: Buffer, at: str) -> str:
        """An element by its number."""
        title = self.buffers[buffer]
        return f"{title}({at})" if buffer in self.whole else f"{title}[{at}]"

    def identifier(self, text: str) -> str:
        """A new name like `text`, as it is written."""
        return self.unique.new(text)

    def declare(self, var: Var) -> str:
        text = self.names[var] = self.identifier(var.name)
        return text

    def constant(self, dtype: DType, title: str, value: str) -> None:
        self.line(f"const {self.TYPES[dtype]} {title} = {value};")

    def array(self, dtype: DType, title: str, size: int) -> str:
        """The declaration of an array of one thread."""
        return f"{self.TYPES[dtype]} {title}[{size}];"

    # Statements.

    def statement(self, stmt: Stmt, *, last: bool) -> None:
        """A statement at group level, or inside a thread loop (`nest` is not empty)."""
        alone = not self.nest and self.kernel.threads > 1 and not _for_all(stmt)
        if alone and any(isinstance(n, Store) for n in visit(stmt)):
            self.when(self.text(equals(TID, 0)))
            self.nest = _ALONE
            self.inner(stmt, last=True)
            self.nest = ()
            self.end()
            return
        self.inner(stmt, last=last)

    def inner(self, stmt: Stmt, *, last: bool) -> None:
        match stmt:
            case Seq(stmts=stmts):
                for i, part in enumerate(stmts):
                    self.statement(part, last=last and i == len(stmts) - 1)
            case For(kind=ForKind.THREAD):
                self.threads(stmt)
            case For(kind=ForKind.MATRIX):
                self.together(stmt)
            case For():
                copy = self.copy(stmt)
                if copy is None:
                    self.loop(stmt)
                else:
                    self.copied(copy)
            case Store(buffer=buffer, index=index, value=value):
                self.store(buffer, index, value)
            case Let():
                self.let(stmt, last)
            case If():
                self.branch(stmt)
            case Alloc():
                self.alloc(stmt, last)
            case Sync():
                self.line(self.barrier())
            case _:
                raise CodegenError(f"kernels for work groups have no {type(stmt).__name__}")

    def threads(self, loop: For) -> None:
        """Each thread its own turn; the last loop's turns are neighbours."""
        nest = nest_of(loop)
        sizes = extents(nest)
        total = prod(sizes)
        for asked in self.kernel.exchanges.get(nest[0].var, ()):
            self.exchange(asked, nest)
        guarded = total < self.kernel.threads
        if guarded:
            self.when(self.text(total > TID))
        else:
            self.scope()
        self.ranges[TID] = (0, self.kernel.threads - 1)
        rest: Expr = TID if self.kernel.threads > 1 else wrap(0)
        for each, size in zip(reversed(nest), reversed(sizes), strict=True):
            self.ranges[each.var] = (0, size - 1)
            value = self.text(rest if each is nest[0] else rest % size)
            self.constant(I32, self.declare(each.var), value)
            rest = rest // size
        self.nest = nest
        self.inner(nest[-1].body, last=True)
        self.nest = ()
        self.end()

    def exchange(self, asked: Exchange, nest: Nest) -> None:
        """All threads of the group take part, those too that have no turn of the loop."""
        self.nest = nest
        value = self.text(asked.buffer[asked.index])
        self.nest = ()
        self.constant(F32, self.declare(asked.var), self.swapped(value, asked.distance))

    def together(self, loop: For) -> None:
        """A thread's part in what a subgroup does at once."""
        if is_move(loop):  # each element lies where it is known to
            self.loop(replace(loop, kind=ForKind.UNROLL))
            return
        found = fragments(loop, self.nest, self.working_unit(), self.simplifier)
        unit = found.unit
        args = [self.place(found.c, index) for index in found.kept]
        for side in (found.a, found.b):
            row = octet_column(side.buffer) if unit.octets else side.buffer.shape[1]
            args += [f"&{self.place(side.buffer, side.index)}", self.text(row)]
        shape = f"{unit.rows}x{unit.columns}x{unit.depth}{unit.form}"
        if found.a.dtype != F16:
            shape += f"_{found.a.dtype}"
        self.multiplier(f"multiply_{shape}", unit, found.a.dtype)
        self.line(f"multiply_{shape}({', '.join(args)});")

    def working_unit(self) -> MatrixUnit:
        """The unit, for which all threads have to be here."""
        if self.unit is None or prod(extents(self.nest)) != self.kernel.threads:
            raise CodegenError("a matrix unit that the target has, and whole subgroups, multiply")
        return self.unit

    def loop(self, loop: For) -> None:
        if loop.kind is ForKind.PARALLEL:
            raise CodegenError(f"parallel loop {loop.var.name} is not outermost")
        end = self.text(loop.extent)
        if const_value(loop.extent) is None and not isinstance(loop.extent, Var):
            title = self.identifier(f"{loop.var.name}_end")
            self.constant(I32, title, end)
            end = title
        self.ranges[loop.var] = (0, max(0, Intervals(self.ranges)(loop.extent)[1] - 1))
        var = self.declare(loop.var)
        self.count(var, end, loop.kind)
        self.statement(loop.body, last=True)
        self.end()

    def counting(self, var: str, end: str) -> str:
        return f"for (i32 {var} = 0; {var} < {end}; {var}++) {{"

    def let(self, stmt: Let, last: bool) -> None:
        text = self.text(stmt.value)
        self.ranges[stmt.var] = _narrowed(stmt.var, Intervals(self.ranges)(stmt.value))
        if not last:
            self.scope()
        self.constant(stmt.value.dtype, self.declare(stmt.var), text)
        self.statement(stmt.body, last=True)
        if not last:
            self.end()

    def branch(self, stmt: If) -> None:
        self.when(self.text(stmt.cond))
        self.statement(stmt.then, last=True)
        if stmt.orelse is not None:
            self.otherwise()
            self.statement(stmt.orelse, last=True)
        self.end()

    def alloc(self, stmt: Alloc, last: bool) -> None:
        buffer = stmt.buffer
        if buffer not in self.kernel.private:
            self.statement(stmt.body, last=last)
            return
        title = self.buffers[buffer] = self.identifier(buffer.name)
        sizes = tuple(size_of(d, buffer.name) for d in buffer.shape)
        size = prod(private_shape(sizes, self.kernel.private[buffer].shares))
        # Declared at the head of the function: compilers that turn groups into loops have been
        # seen to lose arrays of inner blocks at a barrier.
        self.arrays.append(self.array(buffer.dtype, title, size))
        self.statement(stmt.body, last=last)

    def store(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr) -> None:
        text = self.text(value)
        self.line(f"{self.place(buffer, index)} = {text};")

    def copy(self, loop: For) -> Copy | None:
        """The load of a vector that a loop is."""
        return vector_copy(loop, self.VECTORS, self.simplifier)

    def copied(self, copy: Copy) -> None:
        """A vector in registers."""
        first = self.numbered(copy.source, self.simplifier.build(copy.first, I32))
        kind, own = self.TYPES[copy.source.dtype], self.place(copy.own, copy.here)
        self.line(f"load_{kind}x{copy.lanes}(&{own}, &{self.element(copy.source, first)});")

    # Places.

    def place(self, buffer: Buffer, index: tuple[Expr, ...]) -> str:
        if buffer not in self.buffers:
            raise CodegenError(f"buffer {buffer.name} is used where it is not known")
        return self.element(buffer, self.offset(buffer, index))

    def flat(self, buffer: Buffer, index: tuple[Expr, ...]) -> Expr:
        """The flat index of an element, in the part that the thread owns where it owns one."""
        shape: tuple[Expr, ...] = buffer.shape
        shares = self.kernel.private[buffer].shares if buffer in self.kernel.private else ()
        if shares:
            sizes = tuple(size_of(d, buffer.name) for d in shape)
            shape = tuple(wrap(d) for d in private_shape(sizes, shares))
            index = private_index(index, shares, self.nest, self.simplifier)
        if buffer in self.octets:
            shape, index = octet_shape(buffer), in_octets(index)
        return self.simplifier.expr(row_major(shape, index))

    def offset(self, buffer: Buffer, index: tuple[Expr, ...]) -> str:
        """The flat index as text."""
        return self.numbered(buffer, self.flat(buffer, index))

    def numbered(self, buffer: Buffer, flat: Expr) -> str:
        """An element's number as text."""
        if buffer not in self.large or not self.WIDE:
            return self.text(flat)
        self.wide = True
        text = self.text(flat)
        self.wide = False
        return text

    def load(self, e: Load) -> str:
        wide, self.wide = self.wide, False
        text = self.place(e.buffer, e.index)
        self.wide = wide
        return f"(({self.WIDE}){text})" if wide and e.dtype == I32 else text


TID = Var("tid", I32, 0)  # the number of a thread in its group
_ALONE: Nest = (For(Var("one"), wrap(1), Seq(()), ForKind.THREAD),)  # one thread's statements


def render_groups(func: PrimFunc, style: type[CStyle], target: Target) -> GroupSource:
    """A function and a launch for each phase of a kernel; see `group_kernel`."""
    body = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    texts, items, launches = [], [], []
    for i, stmt in enumerate(body):
        symbol = name(func.name) if len(body) == 1 else f"{name(func.name)}_{i}"
        stmt = simplify_stmt(stmt)
        text, launch = _phase(symbol, func, stmt, style, target)
        texts.append(text)
        launches.append(launch)
        many = stmt.extent if isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL else wrap(1)
        items.append(to_text(simplify(many)))
    dims = tuple(d.name for d in launch_dims(func))
    return GroupSource("\n\n".join(texts), tuple(items), tuple(launches), dims)


def launch_dims(func: PrimFunc) -> tuple[Var, ...]:
    """The dims that the loops need; a step whose other sizes change launches the same."""
    needed = free_vars(func.body)
    return tuple(d for d in func.dims if d in needed)


def _phase(
    symbol: str, func: PrimFunc, stmt: Stmt, style: type[CStyle], target: Target
) -> tuple[str, Phase]:
    kernel = group_kernel(style.prepared(stmt), barriers=target.barriers, lanes=target.subgroup)
    used = {n.buffer for n in visit(kernel.body) if isinstance(n, Load | Store)}
    stored = {n.buffer for n in visit(kernel.body) if isinstance(n, Store)}
    known = set(func.dims)
    large = frozenset(
        p for p in func.params if not {v for d in p.shape for v in free_vars(d)} <= known
    )
    unit = target.unit
    octets = operands(kernel.body) if unit is not None and unit.octets else frozenset()
    writer = style(kernel, large=large, unit=unit, octets=octets)
    buffers, where = [], []
    for i, p in enumerate(func.params):
        if p in used:
            title = writer.buffers[p] = writer.identifier(p.name)
            names = [title] if p in stored else writer.parts(p, title, target)
            buffers += [(p, part, p in stored) for part in names]
            where += [i] * len(names)
    needed = launch_dims(func)
    for d in needed:
        writer.ranges[d] = (d.lo or 0, float("inf"))
    dims = tuple(writer.declare(d) for d in needed)
    text = writer.function(Signature(symbol, tuple(buffers), dims, kernel.threads))
    shared = sum(writer.shared_elements(b) * writer.shared_bytes(b) for b in kernel.shared)
    writes = tuple(i for i, (_, _, writes) in zip(where, buffers, strict=True) if writes)
    groups = to_text(simplify(kernel.groups))
    # A unit of several subgroups counts on each of them.
    lanes = min(unit.lanes, target.subgroup) if unit and has_matrix(kernel.body) else 0
    return text, Phase(
        symbol=symbol, groups=groups, threads=kernel.threads, buffers=tuple(where),
        writes=writes, shared_bytes=shared, lanes=max(lanes, kernel.lanes, writer.lanes),
    )  # fmt: skip


def _for_all(stmt: Stmt) -> bool:
    """Whether all threads of the group take part in a statement at group level."""
    return any(
        isinstance(n, Sync) or (isinstance(n, For) and n.kind is ForKind.THREAD)
        for n in visit(stmt)
    )


def _narrowed(var: Var, interval: Interval) -> Interval:
    """What is known of a Let's value, with the bounds that its maker vouches for."""
    lo = interval[0] if var.lo is None else max(interval[0], var.lo)
    hi = interval[1] if var.hi is None else min(interval[1], var.hi)
    return lo, hi
