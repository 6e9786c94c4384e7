"""A kernel for work groups: which memory each buffer gets, and where the threads must meet.

In: one outermost statement of a PrimFunc, a PARALLEL loop whose turns are work groups with THREAD
loops inside. Out: a GroupKernel, whose statements stand at one of two levels: at group level every
thread of the group goes the same way, and in a thread loop each does its own turn. Statements at
group level that store are done by one thread. A Sync stands wherever one thread may touch what
another has touched since the last; what neighbours can hand to each other needs none (see `lanes`).
Knows no language.

A kernel without thread loops gets them: from its VECTOR loops, or, where it has none, by giving
each work item a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sterna.base.dtype import I32
from sterna.base.errors import CodegenError
from sterna.codegen.lanes import Exchange, Nest, handed_over, in_registers
from sterna.codegen.touches import Touch, Touches, half_of, unknown
from sterna.ir.bounds import Interval, Intervals
from sterna.ir.expr import Buffer, Expr, Load, Var, ceil_div, const_value, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Prefetch, Seq, Stmt, Store, Sync, seq
from sterna.ir.rewrite import free_vars, rewrite, visit
from sterna.ir.simplify import Simplifier, simplify

_FLAT_THREADS = 64  # of a group whose items know nothing of each other
_ALONE_THREADS = 16  # where no threads do: groups are what a processor's cores share


@dataclass(frozen=True, slots=True)
class Share:
    """How one thread loop owns a dimension: blocks of `factor`, one after another to `threads`."""

    dim: int
    factor: int
    threads: int


@dataclass(frozen=True, slots=True)
class Private:
    """Each thread has its own part: all of the buffer, or what its Shares leave."""

    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupKernel:
    """`groups` turns of `group`, of `threads` threads each. Buffers not in `private` are shared.

    All threads alike read from `steering` to know which way they go. `exchanges` come before the
    thread loops whose outermost variables they are under.
    """

    group: Var
    groups: Expr
    threads: int
    body: Stmt
    private: dict[Buffer, Private]
    shared: tuple[Buffer, ...]
    steering: frozenset[Buffer]
    exchanges: dict[Var, tuple[Exchange, ...]]

    @property
    def lanes(self) -> int:
        """How many threads side by side have to be able to exchange values."""
        return max((2 * e.distance for each in self.exchanges.values() for e in each), default=0)


def group_kernel(stmt: Stmt, *, barriers: bool = True, lanes: int = 0) -> GroupKernel:
    """The work groups of one phase of a kernel; CodegenError where they cannot be formed.

    Without `barriers` each work item is one thread's, and none may wait for another. `lanes`
    threads side by side can exchange values in registers.
    """
    if isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL:
        group, groups, body = stmt.var, stmt.extent, stmt.body
    else:
        group, groups, body = Var("group", I32, 0, 0), wrap(1), stmt
    body = _without_hints(body)
    if not _has(body, ForKind.THREAD) and barriers:
        body = _threads_from_vectors(body)
    if not _has(body, ForKind.THREAD) and const_value(groups) != 1:
        size = _FLAT_THREADS if barriers else _ALONE_THREADS
        group, groups, body = _flat(group, groups, body, size)
    body, exchanges = _exchanged(body, lanes)
    threads = max((_size(nest) for nest in _nests(body)), default=1)
    accesses = _Accesses()
    accesses.group_level(body)
    private: dict[Buffer, Private] = {}
    shared: list[Buffer] = []
    for node, inside in _allocations(body, inside=False):
        alone = inside or not _has(node, ForKind.THREAD)
        found = Private() if alone else accesses.owner(node.buffer)
        if found is None:
            shared.append(node.buffer)
        else:
            private[node.buffer] = found
    body, _ = _Barriers(frozenset(private), accesses).stmt(body, Touches())
    if not barriers and any(isinstance(n, Sync) for n in visit(body)):
        raise CodegenError("threads of a group would wait for each other, and the target has none")
    alike = frozenset(accesses.alike)
    return GroupKernel(group, groups, threads, body, private, tuple(shared), alike, exchanges)


def _exchanged(body: Stmt, lanes: int) -> tuple[Stmt, dict[Var, tuple[Exchange, ...]]]:
    """The loops with what neighbours hand to each other in registers."""
    exchanges: dict[Var, tuple[Exchange, ...]] = {}
    for buffer in handed_over(body, list(_nests(body)), lanes) if lanes else ():
        new = in_registers(body, list(_nests(body)), buffer)
        accesses = _Accesses()
        accesses.group_level(new.body)
        if accesses.owner(new.own) is None:
            continue  # group level reads it, or threads own it in two ways
        body = new.body
        for var, found in new.exchanges.items():
            exchanges[var] = (*exchanges.get(var, ()), *found)
    return body, exchanges


def _without_hints(stmt: Stmt) -> Stmt:
    """No prefetches: a group hides the latency of memory by having many threads."""

    def rule(s: Stmt) -> Stmt:
        idle = isinstance(s, For | Let) and isinstance(s.body, Seq) and not s.body.stmts
        return Seq(()) if idle or isinstance(s, Prefetch) else s

    return rewrite(stmt, stmt_rule=rule)


def _has(stmt: Stmt, kind: ForKind) -> bool:
    return any(isinstance(n, For) and n.kind is kind for n in visit(stmt))


def _threads_from_vectors(stmt: Stmt) -> Stmt:
    """Vector loops of more than one lane as thread loops; those inside a vector loop stay."""
    match stmt:
        case For(var=var, extent=extent, body=body, kind=ForKind.VECTOR):
            lanes = const_value(simplify(extent))
            kind = ForKind.THREAD if lanes is not None and lanes > 1 else ForKind.SERIAL
            return For(var, extent, body, kind)
        case For(var=var, extent=extent, body=body, kind=kind):
            return For(var, extent, _threads_from_vectors(body), kind)
        case Let(var=var, value=value, body=body):
            return Let(var, value, _threads_from_vectors(body))
        case Alloc(buffer=buffer, body=body):
            return Alloc(buffer, _threads_from_vectors(body))
        case If(cond=cond, then=then, orelse=orelse):
            other = None if orelse is None else _threads_from_vectors(orelse)
            return If(cond, _threads_from_vectors(then), other)
        case Seq(stmts=stmts):
            return seq(*map(_threads_from_vectors, stmts))
    return stmt


def _flat(item: Var, items: Expr, body: Stmt, size: int) -> tuple[Var, Expr, Stmt]:
    """A thread for each item, `size` in a group."""
    group, thread = Var("group", I32, 0), Var("thread", I32, 0, size - 1)
    renamed = Let(item, group * size + thread, If(item < items, body))
    loop = For(thread, wrap(size), renamed, ForKind.THREAD)
    return group, simplify(ceil_div(items, size)), loop


def _nests(stmt: Stmt) -> Iterator[Nest]:
    """Every outermost thread loop with those directly inside it."""
    inner: set[Stmt] = set()
    for node in visit(stmt):
        if isinstance(node, For) and node.kind is ForKind.THREAD and node not in inner:
            nest = nest_of(node)
            inner.update(nest)
            yield nest


def nest_of(loop: For) -> Nest:
    """The loop and the thread loops directly inside each other; none may stand deeper."""
    nest = [loop]
    while isinstance(nest[-1].body, For) and nest[-1].body.kind is ForKind.THREAD:
        nest.append(nest[-1].body)
    if _has(nest[-1].body, ForKind.THREAD):
        raise CodegenError(f"thread loop {loop.var.name} has another inside, but not directly")
    return tuple(nest)


def extents(nest: Nest) -> tuple[int, ...]:
    sizes = [const_value(simplify(loop.extent)) for loop in nest]
    if any(size is None for size in sizes):
        raise CodegenError(f"thread loop {nest[0].var.name} has no number of turns")
    return tuple(int(size or 0) for size in sizes)


def _size(nest: Nest) -> int:
    size = 1
    for extent in extents(nest):
        size *= extent
    return size


def _allocations(stmt: Stmt, *, inside: bool) -> Iterator[tuple[Alloc, bool]]:
    """Every Alloc, and whether it stands in a thread loop."""
    match stmt:
        case Alloc():
            yield stmt, inside
            yield from _allocations(stmt.body, inside=inside)
        case For():
            thread = stmt.kind is ForKind.THREAD
            yield from _allocations(stmt.body, inside=inside or thread)
        case Let():
            yield from _allocations(stmt.body, inside=inside)
        case If():
            yield from _allocations(stmt.then, inside=inside)
            if stmt.orelse is not None:
                yield from _allocations(stmt.orelse, inside=inside)
        case Seq():
            for part in stmt.stmts:
                yield from _allocations(part, inside=inside)


@dataclass(slots=True)
class _Accesses:
    """Every use of a buffer: by one thread, by all alike, or in a nest of thread loops."""

    one: dict[Buffer, int] = field(default_factory=dict)
    alike: dict[Buffer, int] = field(default_factory=dict)
    nested: dict[Buffer, list[tuple[Nest, tuple[Expr, ...]]]] = field(default_factory=dict)
    ranges: dict[Var, Interval] = field(default_factory=dict)
    simplifier: Simplifier = field(default_factory=Simplifier)

    def group_level(self, stmt: Stmt) -> None:
        if not _has(stmt, ForKind.THREAD):
            for buffer in _touched(stmt):
                self.one[buffer] = 1
            return
        match stmt:
            case For(kind=ForKind.THREAD):
                nest = nest_of(stmt)
                self.in_threads(nest[-1].body, nest)
            case For(extent=extent, body=body):
                self.uniform(extent)
                self.group_level(body)
            case Let(value=value, body=body):
                self.uniform(value)
                self.group_level(body)
            case If(cond=cond, then=then, orelse=orelse):
                self.uniform(cond)
                self.group_level(then)
                if orelse is not None:
                    self.group_level(orelse)
            case Alloc(body=body):
                self.group_level(body)
            case Seq(stmts=stmts):
                for part in stmts:
                    self.group_level(part)

    def uniform(self, e: Expr) -> None:
        for node in visit(e):
            if isinstance(node, Load):
                self.alike[node.buffer] = 1

    def in_threads(self, stmt: Stmt, nest: Nest) -> None:
        for node in visit(stmt):
            if isinstance(node, Load | Store):
                self.nested.setdefault(node.buffer, []).append((nest, node.index))

    def owner(self, buffer: Buffer) -> Private | None:
        """How threads own the buffer, if no thread ever touches another's part."""
        if buffer.scope == "shared" or buffer in self.alike:
            return None
        uses = self.nested.get(buffer, [])
        if not uses or buffer in self.one:
            return None
        found = {self.shares(nest, index) for nest, index in uses}
        first = found.pop()
        return None if first is None or found else Private(first)

    def shares(self, nest: Nest, index: tuple[Expr, ...]) -> tuple[Share, ...] | None:
        """A Share for each loop; a later loop shares what the earlier ones leave to a thread."""
        result, parts = [], list(index)
        for loop, threads in zip(nest, extents(nest), strict=True):
            share = self.share(loop, threads, parts)
            if share is None:
                return None
            result.append(share)
            parts[share.dim] = _left(parts[share.dim], loop, share, self.simplifier)
        return tuple(result)

    def share(self, loop: For, threads: int, index: list[Expr]) -> Share | None:
        where = [d for d, e in enumerate(index) if loop.var in free_vars(e)]
        if len(where) != 1:
            return None
        terms = self.simplifier.sum(index[where[0]])
        factor = terms.terms.get(loop.var, 0)
        rest = terms.drop(loop.var)
        if factor < 1 or any(loop.var in free_vars(atom) for atom in rest.terms):
            return None
        _, inside = rest.split(factor * threads)
        lo, hi = Intervals({})(self.simplifier.build(inside, I32))
        return Share(where[0], factor, threads) if lo >= 0 and hi < factor else None


def _left(e: Expr, loop: For, share: Share, simplifier: Simplifier) -> Expr:
    """The index along a dimension in what is left to a thread of it."""
    blocks, inside = simplifier.sum(e).drop(loop.var).split(share.factor * share.threads)
    return simplifier.build(blocks.times(share.factor).plus(inside), I32)


def private_index(
    index: tuple[Expr, ...], shares: tuple[Share, ...], nest: Nest, simplifier: Simplifier
) -> tuple[Expr, ...]:
    """Where in its own part a thread finds an element."""
    parts = list(index)
    for loop, share in zip(nest, shares, strict=True):
        parts[share.dim] = _left(parts[share.dim], loop, share, simplifier)
    return tuple(parts)


def private_shape(shape: tuple[int, ...], shares: tuple[Share, ...]) -> tuple[int, ...]:
    """The shape of each thread's part."""
    sizes = list(shape)
    for share in shares:
        sizes[share.dim] = -(-sizes[share.dim] // (share.factor * share.threads)) * share.factor
    return tuple(sizes)


def _touched(stmt: Stmt) -> set[Buffer]:
    return {n.buffer for n in visit(stmt) if isinstance(n, Load | Store)}


_ONE = "one"  # the one thread that runs what stands at group level


def _together(stmts: Sequence[Stmt]) -> list[Stmt]:
    """Neighbouring statements that one thread runs, as one."""
    result: list[Stmt] = []
    for stmt in stmts:
        alone = not _has(stmt, ForKind.THREAD)
        if alone and result and not _has(result[-1], ForKind.THREAD):
            result[-1] = seq(result[-1], stmt)
        else:
            result.append(stmt)
    return result


@dataclass(frozen=True, slots=True)
class _Barriers:
    """Puts a Sync before whatever could meet another thread's unfinished work."""

    private: frozenset[Buffer]
    accesses: _Accesses

    def stmt(self, stmt: Stmt, state: Touches) -> tuple[Stmt, Touches]:
        if not _has(stmt, ForKind.THREAD) or (
            isinstance(stmt, For) and stmt.kind is ForKind.THREAD
        ):
            return self.met(stmt, self.touched(stmt), state)
        match stmt:
            case Seq(stmts=stmts):
                parts = []
                for part in _together(stmts):
                    new, state = self.stmt(part, state)
                    parts.append(new)
                return Seq(tuple(parts)), state
            case For(var=var, extent=extent, body=body, kind=kind):
                before, state = self.met(Seq(()), self.uniform(extent), state)
                if self.touched(body).halved(unknown).meets(state):  # once, not in every turn
                    before, state = Sync(), Touches()
                new, after = self.turns(body, var, state.entered(var))
                state = state.joined(after.halved(unknown))
                return Seq((before, For(var, extent, new, kind))), state
            case Let(var=var, value=value, body=body):
                before, state = self.met(Seq(()), self.uniform(value), state)
                body, state = self.stmt(body, state)
                return Seq((before, Let(var, value, body))), state
            case If(cond=cond, then=then, orelse=orelse):
                before, state = self.met(Seq(()), self.uniform(cond), state)
                then, end = self.stmt(then, state)
                other, end_other = (None, state) if orelse is None else self.stmt(orelse, state)
                return Seq((before, If(cond, then, other))), end.joined(end_other)
            case Alloc(buffer=buffer, body=body):
                body, state = self.stmt(body, state)
                return Alloc(buffer, body), state
        raise CodegenError(f"{type(stmt).__name__} has no place in a work group")

    def turns(self, body: Stmt, var: Var, state: Touches) -> tuple[Stmt, Touches]:
        """A loop's body that suits every turn: what one leaves, the next may find."""
        while True:
            new, after = self.stmt(body, state)
            found = state.joined(after.next_turn(var))
            if found == state:
                return new, after
            state = found

    def met(self, stmt: Stmt, own: Touches, state: Touches) -> tuple[Stmt, Touches]:
        """The statement behind a Sync, if it needs one."""
        if own.meets(state):
            return Seq((Sync(), stmt)), own  # not flattened: what one thread runs stays one
        return stmt, state.joined(own)

    def uniform(self, e: Expr) -> Touches:
        """An expression that all threads evaluate alike."""
        reads = (n.buffer for n in visit(e) if isinstance(n, Load))
        return Touches(frozenset((b, None, None) for b in reads if b not in self.private))

    def touched(self, stmt: Stmt) -> Touches:
        """Everything that a statement at group level touches, and who does."""
        if not _has(stmt, ForKind.THREAD):
            return self.state(stmt, ())
        match stmt:
            case For(kind=ForKind.THREAD):
                nest = nest_of(stmt)
                return self.state(nest[-1].body, nest)
            case For(extent=head, body=body) | Let(value=head, body=body):
                return self.uniform(head).joined(self.touched(body))
            case Alloc(body=body):
                return self.touched(body)
            case If(cond=cond, then=then, orelse=orelse):
                parts = [then] if orelse is None else [then, orelse]
                found = self.uniform(cond)
            case Seq(stmts=stmts):
                parts, found = list(stmts), Touches()
            case _:
                raise CodegenError(f"{type(stmt).__name__} has no place in a work group")
        for part in parts:
            found = found.joined(self.touched(part))
        return found

    def state(self, stmt: Stmt, nest: Nest) -> Touches:
        reads, writes = set[Touch](), set[Touch]()
        for node in visit(stmt):
            if isinstance(node, Load | Store) and node.buffer not in self.private:
                owner = self.accesses.shares(nest, node.index) if nest else _ONE
                half = half_of(node.buffer, node.index, self.accesses.simplifier)
                (reads if isinstance(node, Load) else writes).add((node.buffer, owner, half))
        return Touches(frozenset(reads), frozenset(writes))
