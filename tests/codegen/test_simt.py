"""Work groups: who owns which buffer, where threads must meet, and what cannot be a group."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sterna.base.dtype import F32, I32
from sterna.base.errors import CodegenError
from sterna.codegen.simt import Private, group_kernel
from sterna.ir.expr import Buffer, Expr, Var, cast, wrap
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Stmt, Store, Sync, seq, store
from sterna.ir.rewrite import visit

X, Y = Buffer("x", F32, (wrap(64),)), Buffer("y", F32, (wrap(64),))
N = Var("n", I32, 1)


def threads(name: str, extent: int, *stmts: Stmt, var: Var | None = None) -> Stmt:
    var = var or Var(name, I32, 0, extent - 1)
    return For(var, wrap(extent), seq(*stmts), ForKind.THREAD)


def thread_var(name: str, extent: int) -> Var:
    return Var(name, I32, 0, extent - 1)


def grid(body: Stmt, extent: Expr | None = None) -> Stmt:
    return For(Var("g", I32, 0), extent or wrap(4), body, ForKind.PARALLEL)


def syncs(stmt: Stmt) -> int:
    return sum(isinstance(n, Sync) for n in visit(stmt))


def test_what_a_thread_alone_touches_is_its_own() -> None:
    a = Buffer("a", F32, (wrap(4), wrap(32)), "register")
    t, u, i = thread_var("t", 8), thread_var("u", 8), Var("i", I32, 0, 3)
    fill = For(i, wrap(4), store(a, (i, i * 8 + t), 1.0))
    body = Alloc(a, seq(threads("", 8, fill, var=t), threads("", 8, store(X, u, a[0, u]), var=u)))
    kernel = group_kernel(grid(body))
    assert kernel.threads == 8
    assert isinstance(kernel.private[a], Private)
    assert syncs(kernel.body) == 0


def test_what_threads_read_of_each_other_is_shared_behind_a_barrier() -> None:
    a = Buffer("a", F32, (wrap(8),), "register")
    t, u = thread_var("t", 8), thread_var("u", 8)
    fill = threads("", 8, store(a, t, cast(F32, t)), var=t)
    turn = threads("", 8, store(X, u, a[7 - u]), var=u)
    kernel = group_kernel(grid(Alloc(a, seq(fill, turn))))
    assert kernel.shared == (a,)
    assert syncs(kernel.body) == 1


def test_a_loop_that_reuses_shared_memory_waits_at_both_ends() -> None:
    a = Buffer("a", F32, (wrap(8),), "shared")
    t, u, k = thread_var("t", 8), thread_var("u", 8), Var("k", I32, 0, 3)
    fill = threads("", 8, store(a, t, X[k * 8 + t]), var=t)
    turn = threads("", 8, store(Y, k * 8 + u, a[7 - u]), var=u)
    kernel = group_kernel(grid(Alloc(a, For(k, wrap(4), seq(fill, turn)))))
    assert syncs(kernel.body) == 2


@pytest.mark.parametrize(
    ("written", "read", "in_a_turn"),
    [
        (lambda k: k % 2, lambda k: k % 2, 1),  # the next turn writes what nobody reads now
        (lambda k: (k + 1) % 2, lambda k: k % 2, 1),  # read is what the turn before wrote
        (lambda k: k % 2, lambda k: (k + 3) % 2, 1),
        (lambda k: wrap(0), lambda k: wrap(0), 2),
        (lambda k: k % 2, lambda k: wrap(0), 2),  # of a number no turn is known
        (lambda k: (2 * k) % 2, lambda k: (4 * k) % 2, 2),  # one half is used always
        (lambda k: (k // 2) % 2, lambda k: (k // 2) % 2, 2),
    ],
)
def test_two_halves_used_by_turns_need_one_barrier(
    written: Callable[[Var], Expr], read: Callable[[Var], Expr], in_a_turn: int
) -> None:
    a = Buffer("a", F32, (wrap(2), wrap(8)), "shared")
    t, u, k = thread_var("t", 8), thread_var("u", 8), Var("k", I32, 0, 3)
    fill = threads("", 8, store(a, (written(k), t), X[k * 8 + t]), var=t)
    turn = threads("", 8, store(Y, k * 8 + u, a[read(k), 7 - u]), var=u)
    kernel = group_kernel(grid(Alloc(a, For(k, wrap(4), seq(fill, turn)))))
    (loop,) = (n for n in visit(kernel.body) if isinstance(n, For) and n.var is k)
    assert syncs(loop) == in_a_turn


def test_what_all_threads_read_alike_waits_for_the_one_that_wrote_it() -> None:
    a = Buffer("a", F32, (wrap(1),), "local")
    t, m = thread_var("t", 8), Var("m", F32)
    body = seq(store(a, 0, 2.0), Let(m, a[0], threads("", 8, store(X, t, m), var=t)))
    kernel = group_kernel(grid(Alloc(a, body)))
    assert kernel.shared == (a,)
    assert syncs(kernel.body) == 1


def test_vectors_become_threads_and_items_without_any_get_one_each() -> None:
    t = thread_var("t", 16)
    kernel = group_kernel(grid(For(t, wrap(16), store(X, t, 0.0), ForKind.VECTOR)))
    assert kernel.threads == 16
    g = Var("g", I32, 0)
    flat = group_kernel(For(g, N, store(X, g, 0.0), ForKind.PARALLEL))
    assert flat.threads == 64
    assert any(isinstance(n, If) for n in visit(flat.body))


def test_two_loops_make_a_group_of_two_dimensions() -> None:
    t, u = thread_var("t", 4), thread_var("u", 8)
    body = threads("", 4, threads("", 8, store(X, t * 8 + u, 0.0), var=u), var=t)
    kernel = group_kernel(grid(body))
    assert kernel.threads == 32


def test_a_thread_loop_deep_in_another_is_refused() -> None:
    t, u = thread_var("t", 4), thread_var("u", 8)
    inner = threads("", 8, store(X, u, 0.0), var=u)
    with pytest.raises(CodegenError, match="has another inside, but not directly"):
        group_kernel(grid(threads("", 4, If(t < 2, inner), var=t)))


def test_one_statement_of_one_thread_is_kept_whole() -> None:
    a = Buffer("a", F32, (wrap(1),), "shared")
    t, i = thread_var("t", 8), Var("i", I32, 0, 7)
    total = seq(store(a, 0, 0.0), For(i, wrap(8), store(a, 0, a[0] + X[i])))
    body = seq(threads("", 8, store(X, t, 1.0), var=t), total)
    kernel = group_kernel(grid(Alloc(a, body)))
    assert syncs(kernel.body) == 1
    assert sum(isinstance(n, Store) for n in visit(kernel.body)) == 3
