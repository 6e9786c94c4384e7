"""Operations on whole numbers that vectors of processors lack, done once or done otherwise.

For devices imitated by a processor: where its vectors have no shift by a number of each lane, no
division and no minimum, each lane is computed by itself, and compilers that take a kernel as it is
told do that again in each turn of a loop. In: a loop program. Out: one of equal values, bit for
bit, in which such operations on indices stand outside the loops that do not change them, and codes
become floats by masks and powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.base.dtype import F32, I32, U32
from sterna.ir.bounds import bounds
from sterna.ir.expr import Binary, Cast, Expr, Load, Var, const_value, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Seq, Stmt, seq
from sterna.ir.rewrite import Rewriter, children, free_vars, rewrite, visit

_SLOW = frozenset({"//", "%", "<<", ">>", "min", "max"})
_WORD = 32  # bits
_EXACT = 24  # bits of a whole number that f32 has


def hoisted(stmt: Stmt) -> Stmt:
    """Slow operations on indices named where a loop begins whose turns alone change them."""
    match stmt:
        case For(var=var, extent=extent, body=body, kind=kind):
            named = {e: _name(e) for e in _lasting(body)}
            walker = Rewriter(lambda e: named.get(e, e), lambda s: s)
            new = hoisted(walker.stmt(body) if named else body)
            for value, name in reversed(named.items()):
                new = Let(name, value, new)
            return For(var, extent, new, kind)
        case Let(var=var, value=value, body=body):
            return Let(var, value, hoisted(body))
        case Alloc(buffer=buffer, body=body):
            return Alloc(buffer, hoisted(body))
        case If(cond=cond, then=then, orelse=orelse):
            return If(cond, hoisted(then), None if orelse is None else hoisted(orelse))
        case Seq(stmts=stmts):
            return seq(*map(hoisted, stmts))
    return stmt


def _name(e: Expr) -> Var:
    lo, hi = bounds(e)
    return Var("index", I32, lo, hi)


def _lasting(body: Stmt) -> list[Expr]:
    """Slow operations in the loops of a loop's body that none of these loops changes."""
    changing = {n.var for n in visit(body) if isinstance(n, For | Let)}
    inner = [n for n in visit(body) if isinstance(n, For) and n.kind is not ForKind.THREAD]
    found: dict[Expr, None] = {}
    for loop in inner:
        for e in _slow(loop.body):
            free = free_vars(e)
            if free and not free & changing:
                found.setdefault(e)
    return list(found)


def _slow(node: Stmt | Expr) -> Iterator[Expr]:
    """The outermost slow operations on indices below; what reads memory is not among them."""
    slow = isinstance(node, Binary) and node.op in _SLOW and node.dtype == I32
    if isinstance(node, Binary) and slow and not any(isinstance(n, Load) for n in visit(node)):
        yield node
        return
    for child in children(node):
        yield from _slow(child)


def by_masks(stmt: Stmt) -> Stmt:
    """Codes cut out of words become floats without a shift."""
    return rewrite(stmt, _masked)


def _masked(e: Expr) -> Expr:
    """f32((word >> s) & mask) as f32(word & (mask << s)) * 2^-s.

    Exact, because a code has few bits and a power of two changes none. The uppermost code would be
    the sign of a whole number: with its own uppermost bit turned it is a number around zero.
    """
    code = _code(e.a) if isinstance(e, Cast) and e.dtype == F32 else None
    if code is None:
        return e
    word, shift, bits = code
    mask, scale = ((1 << bits) - 1) << shift, wrap(0.5**shift)
    if shift + bits < _WORD:
        return Cast(F32, Cast(I32, word & mask)) * scale
    turned = Binary("^", word, wrap(1 << _WORD - 1, U32))
    return Cast(F32, Cast(I32, turned & mask)) * scale + float(1 << bits - 1)


def _code(e: Expr) -> tuple[Expr, int, int] | None:
    """(word, shift, bits) of a code of a word that lies above others."""
    e = e.a if isinstance(e, Cast) and e.dtype == I32 else e
    if not isinstance(e, Binary) or e.dtype != U32:
        return None
    mask = const_value(e.b) if e.op == "&" else None
    cut = e.a if mask is not None else e
    shift = const_value(cut.b) if isinstance(cut, Binary) and cut.op == ">>" else None
    if not isinstance(cut, Binary) or shift is None or not 0 < shift < _WORD:
        return None
    most = _WORD - int(shift)
    bits = most if mask is None else min(most, int(mask).bit_length())
    whole = mask is None or int(mask) & ((1 << most) - 1) == (1 << bits) - 1
    return (cut.a, int(shift), bits) if whole and bits <= _EXACT else None
