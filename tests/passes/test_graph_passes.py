"""What each pass does, must leave alone and must refuse, on IR text."""

from collections.abc import Callable
from functools import partial

import pytest

from sterna.base.errors import InvalidIR
from sterna.ir.equal import equal
from sterna.ir.graph import Function, IRModule, call
from sterna.ir.parser import parse_module
from sterna.ir.printer import to_text
from sterna.ir.verify import verify
from sterna.passes.cleanup import cleanup
from sterna.passes.combine_matmul import combine_matmul
from sterna.passes.fuse_rope_append import fuse_rope_append
from sterna.passes.last_rows import last_rows
from sterna.passes.pipeline import infer, run

FUSED = {"gate_up": ("gate", "up")}
DIMS = "n = dim(1, 64)\nr = dim(1, 64)\n"


def module(params: str, *lines: str, dims: str = DIMS, more: str = "") -> IRModule:
    """One function f with those parameters and lines, verified."""
    body = "".join(f"    {line}\n" for line in lines)
    parsed = parse_module(f"{dims}\n{more}\n@function\ndef f({params}):\n{body}\nentry('f')\n")
    verify(parsed, infer)
    return parsed


def assert_becomes(
    transform: Callable[[IRModule], IRModule], before: IRModule, after: IRModule
) -> None:
    done = transform(before)
    verify(done, infer)
    assert equal(done, after), to_text(done)


def assert_left_alone(transform: Callable[[IRModule], IRModule], before: IRModule) -> None:
    assert_becomes(transform, before, before)


def stacked(before: IRModule) -> IRModule:
    return combine_matmul(before, FUSED)


# last_rows

ROWS = "x: f32[n, 8], rows: i32[r]"


def test_rows_pass_through_everything_row_wise() -> None:
    before = module(
        f"{ROWS}, c: f32[n, 2], s: f32[n, 2], row: f32[8]",
        "w = weight('w', f16[8, 8])",
        "turned: f32[n, 8] = rope(x, c, s, head_dim=4)",
        "a: f32[n, 8] = add(turned, row)",
        "b: f32[n, 8] = multiply(a, x)",
        "h: f16[n, 8] = cast(b, dtype='f16')",
        "m: f16[n, 8] = matmul(h, w)",
        "part: f16[n, 4] = slice(m, size=4, start=2)",
        "out: f16[r, 4] = take(part, rows)",
        "return out",
    )
    after = module(
        f"{ROWS}, c: f32[n, 2], s: f32[n, 2], row: f32[8]",
        "w = weight('w', f16[8, 8])",
        "x_rows: f32[r, 8] = take(x, rows)",
        "c_rows: f32[r, 2] = take(c, rows)",
        "s_rows: f32[r, 2] = take(s, rows)",
        "turned: f32[r, 8] = rope(x_rows, c_rows, s_rows, head_dim=4)",
        "a: f32[r, 8] = add(turned, row)",
        "b: f32[r, 8] = multiply(a, x_rows)",
        "h: f16[r, 8] = cast(b, dtype='f16')",
        "m: f16[r, 8] = matmul(h, w)",
        "out: f16[r, 4] = slice(m, size=4, start=2)",
        "return out",
    )
    assert_becomes(last_rows, before, after)


def test_rows_that_somebody_else_needs_are_kept() -> None:
    before = module(
        ROWS,
        "y: f32[n, 8] = silu(x)",
        "z: f32[n, 8] = silu(y)",
        "out: f32[r, 8] = take(z, rows)",
        "return out, y",
    )
    after = module(
        ROWS,
        "y: f32[n, 8] = silu(x)",
        "y_rows: f32[r, 8] = take(y, rows)",
        "out: f32[r, 8] = silu(y_rows)",
        "return out, y",
    )
    assert_becomes(last_rows, before, after)


@pytest.mark.parametrize(
    ("params", "lines"),
    [
        # Other rows are wanted by another reader.
        (
            f"{ROWS}, others: i32[r]",
            [
                "y: f32[n, 8] = silu(x)",
                "a: f32[r, 8] = take(y, rows)",
                "b: f32[r, 8] = take(y, others)",
                "return a, b",
            ],
        ),
        # The rows are computed too late.
        (
            f"{ROWS}, table: f32[n, 8]",
            [
                "y: f32[n, 8] = silu(x)",
                "late: i32[r] = add(rows, rows)",
                "a: f32[r, 8] = take(y, late)",
                "return a",
            ],
        ),
        # A matmul's weight is no argument by rows of the result.
        (
            "x: f32[n, 8], w: f32[n, 8], rows: i32[r], y: f32[4, 8]",
            ["s: f32[n, 8] = silu(w)", "m: f32[4, n] = matmul(y, s)", "return m"],
        ),
        # Embedding: the table is a weight of fixed size and is looked up as it is.
        (
            "tokens: i32[n]",
            [
                "w = weight('w', f16[160, 8])",
                "t: f32[160, 8] = cast(w, dtype='f32')",
                "y: f32[n, 8] = take(t, tokens)",
                "return y",
            ],
        ),
    ],
)
def test_rows_are_not_taken_early(params: str, lines: list[str]) -> None:
    assert_left_alone(last_rows, module(params, *lines))


# combine_matmul


def gate_up(*lines: str, weights: str = "f16[16, 8]") -> IRModule:
    return module(
        "x: f32[n, 8], z: f32[n, 8]",
        f"a = weight('m.gate.weight', {weights})",
        f"b = weight('m.up.weight', {weights})",
        *lines,
    )


def test_packed_weights_and_biases_are_stacked_along_their_rows() -> None:
    how = "bias=7, bits=4, depth=8, group=8, layout='KN', packing='word'"
    before = module(
        "x: f32[n, 8]",
        "w0 = weight('gate.q_weight', u32[1, 16])",
        "s0 = weight('gate.q_scale', f16[1, 16])",
        "w1 = weight('up.q_weight', u32[1, 24])",
        "s1 = weight('up.q_scale', f16[1, 24])",
        "b1 = weight('up.bias', f16[24])",
        "b0 = weight('gate.bias', f16[16])",
        f"d1: f32[24, 8] = dequantize(w1, s1, {how}, rows=24)",
        "m1: f32[n, 24] = matmul(x, d1)",
        "c1: f32[24] = cast(b1, dtype='f32')",
        "up: f32[n, 24] = add(m1, c1)",
        f"d0: f32[16, 8] = dequantize(w0, s0, {how}, rows=16)",
        "m0: f32[n, 16] = matmul(x, d0)",
        "c0: f32[16] = cast(b0, dtype='f32')",
        "gate: f32[n, 16] = add(m0, c0)",
        "return gate, up",
    )
    names = [f"'{{}}.{leaf}'" for leaf in ("q_weight", "q_scale", "bias")]
    rows = (", ".join(n.format(part) for part in ("gate_up", "gate", "up")) for n in names)
    after = module(
        "x: f32[n, 8]",
        "w = weight('gate_up.q_weight', u32[1, 40])",
        "s = weight('gate_up.q_scale', f16[1, 40])",
        "b = weight('gate_up.bias', f16[40])",
        f"d: f32[40, 8] = dequantize(w, s, {how}, rows=40)",
        "m: f32[n, 40] = matmul(x, d)",
        "c: f32[40] = cast(b, dtype='f32')",
        "y: f32[n, 40] = add(m, c)",
        "gate: f32[n, 16] = slice(y, size=16, start=0)",
        "up: f32[n, 24] = slice(y, size=24, start=16)",
        "return gate, up",
        more="\n".join(f"fused({names})" for names in rows),
    )
    assert_becomes(stacked, before, after)


def test_a_bias_that_one_part_lacks_stays_behind_the_slice() -> None:
    before = gate_up(
        "c = weight('m.up.bias', f32[16])",
        "g: f32[n, 16] = matmul(x, a)",
        "u: f32[n, 16] = matmul(x, b)",
        "v: f32[n, 16] = add(u, c)",
        "return g, v",
    )
    after = module(
        "x: f32[n, 8], z: f32[n, 8]",
        "w = weight('m.gate_up.weight', f16[32, 8])",
        "c = weight('m.up.bias', f32[16])",
        "both: f32[n, 32] = matmul(x, w)",
        "g: f32[n, 16] = slice(both, size=16, start=0)",
        "u: f32[n, 16] = slice(both, size=16, start=16)",
        "v: f32[n, 16] = add(u, c)",
        "return g, v",
        more="fused('m.gate_up.weight', 'm.gate.weight', 'm.up.weight')",
    )
    assert_becomes(stacked, before, after)


def test_weights_that_the_table_does_not_name_are_left_alone() -> None:
    before = gate_up("g: f32[n, 16] = matmul(x, a)", "u: f32[n, 16] = matmul(x, b)", "return g, u")
    assert_left_alone(lambda m: combine_matmul(m, {"qkv": ("q", "k", "v")}), before)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["g: f32[n, 16] = matmul(x, a)", "u: f32[n, 16] = matmul(z, b)", "return g, u"],
            "weights at m are stored stacked as gate_up, but the matmuls .* do not share",
        ),
        (
            [
                "g: f32[n, 16] = matmul(x, a)",
                "u: f32[n, 16] = matmul(x, b)",
                "again: f32[n, 16] = matmul(z, b)",
                "return g, u, again",
            ],
            "m.up.weight .* not read by one matmul alone",
        ),
        (
            ["g: f32[n, 16] = matmul(x, a)", "u: f32[16, 8] = cast(b, dtype='f32')", "return g, u"],
            "m.up.weight .* not read by one matmul alone",
        ),
    ],
)
def test_other_uses_of_stacked_weights_are_refused(lines: list[str], message: str) -> None:
    with pytest.raises(InvalidIR, match=message):
        stacked(gate_up(*lines))


def test_a_missing_part_is_refused_and_unlike_parts_stay_apart() -> None:
    gate = "a = weight('m.gate.weight', f16[16, 8])", "g: f32[n, 16] = matmul(x, a)"
    with pytest.raises(InvalidIR, match="up is not read beside the rest"):
        stacked(module("x: f32[n, 8]", *gate, "return g"))
    up = "b = weight('m.up.weight', f32[16, 8])", "u: f32[n, 16] = matmul(x, b)"
    both = gate[0], up[0], gate[1], up[1]
    apart = module("x: f32[n, 8]", *both, "return g, u")
    assert equal(stacked(apart), apart)


# fuse_rope_append

STEP = (
    "q: f32[n, 8], k: f32[n, 4], v: f32[n, 4], cos: f32[n, 2], sin: f32[n, 2], "
    "other: f32[n, 2], kv: f16[9, 1, 2, 1, 64], positions: i32[n], seq_ids: i32[n], "
    "indptr: i32[3], table: i32[9], start: i32[n], size: i32[n], seq: i32[n]"
)
QUERY = "turned: f32[n, 8] = rope(q, cos, sin, head_dim=4)"
KEY = "key: f32[n, 4] = rope(k, cos, sin, head_dim=4)"
APPEND = (
    "cache: f16[9, 1, 2, 1, 64] = "
    "kv_append(key, v, kv, positions, seq_ids, indptr, table, head_dim=4)"
)
ATTEND = (
    "out: f32[n, 8] = attention(turned, cache, positions, indptr, table, start, size, seq, "
    "head_dim=4, scale=0.5, sinks=0, window=-1)"
)


@pytest.mark.parametrize(
    "lines",
    [
        [QUERY, KEY, APPEND, ATTEND, "return out, cache, key"],
        [QUERY, KEY, APPEND, ATTEND, "more: f32[n, 4] = silu(key)", "return out, cache, more"],
        [QUERY, "early: f32[n, 8] = silu(turned)", KEY, APPEND, ATTEND, "return out, cache, early"],
        [QUERY.replace("cos", "other"), KEY, APPEND, ATTEND, "return out, cache"],
        [KEY, APPEND, QUERY, ATTEND, "return out, cache"],
        [KEY, APPEND, ATTEND.replace("turned", "q"), "return out, cache"],
        [QUERY, APPEND.replace("key", "k"), ATTEND, "return out, cache"],
        [QUERY, KEY, APPEND, ATTEND.replace("cache", "kv"), "return out, cache"],
    ],
)
def test_rope_and_append_stay_apart(lines: list[str]) -> None:
    assert_left_alone(fuse_rope_append, module(STEP, *lines))


def test_rope_and_append_stay_apart_where_one_kernel_would_bind_too_much() -> None:
    lines = [QUERY, KEY, APPEND, ATTEND, "return out, cache"]
    whole = module(STEP, *lines)  # ten operands and a result
    assert_left_alone(partial(fuse_rope_append, most_buffers=10), whole)
    for most in (11, None):
        assert not equal(fuse_rope_append(whole, most_buffers=most), whole)
    parts = [
        f"{name}: f32[n, {size}] = slice(qkv, size={size}, start={start})"
        for name, size, start in (("q", 8, 0), ("k", 4, 8), ("v", 4, 12))
    ]
    step = STEP.replace("q: f32[n, 8], k: f32[n, 4], v: f32[n, 4]", "qkv: f32[n, 16]")
    stacked = module(step, *parts, *lines)  # of one buffer
    assert_left_alone(partial(fuse_rope_append, most_buffers=8), stacked)
    assert not equal(fuse_rope_append(stacked, most_buffers=9), stacked)


def test_a_rotated_query_that_others_read_later_is_a_result_of_the_kernel() -> None:
    rest = ["later: f32[n, 8] = silu(turned)", "return out, cache, later"]
    done = fuse_rope_append(module(STEP, QUERY, KEY, APPEND, ATTEND, *rest))
    verify(done, infer)
    (fused, *others) = done.functions["f"].bindings
    assert [b.call.op for b in (fused, *others)] == ["rope_append", "attention", "silu"]
    assert others[1].call.args == fused.outs[:1]


# cleanup


def test_casts_fold_only_where_the_middle_type_holds_every_value() -> None:
    before = module(
        "h: f16[n, 8], b: bf16[n, 8], x: f32[n, 8], i: i32[n, 8]",
        "h1: f32[n, 8] = cast(h, dtype='f32')",
        "h2: bf16[n, 8] = cast(h1, dtype='bf16')",
        "b1: f16[n, 8] = cast(b, dtype='f16')",
        "b2: f32[n, 8] = cast(b1, dtype='f32')",
        "x1: f16[n, 8] = cast(x, dtype='f16')",
        "x2: f32[n, 8] = cast(x1, dtype='f32')",
        "i1: f32[n, 8] = cast(i, dtype='f32')",
        "i2: f16[n, 8] = cast(i1, dtype='f16')",
        "return h2, b2, x2, i2",
    )
    done = cleanup(before).functions["f"]
    casts = {b.outs[0].name: b.call.args[0].name for b in done.bindings}
    assert casts == {"h2": "h", "b1": "b", "b2": "b1", "x1": "x", "x2": "x1", "i1": "i", "i2": "i1"}


def test_results_stay_tensors_of_their_own() -> None:
    before = module(
        "x: f32[n, 8]",
        "a: f32[n, 8] = silu(x)",
        "b: f32[n, 8] = silu(x)",
        "c: f32[n, 8] = cast(x, dtype='f32')",
        "return a, b, c",
    )
    assert_left_alone(cleanup, before)


def test_equal_calls_differ_by_attributes_of_equal_value() -> None:
    before = module(
        "x: f32[n, 8]",
        "w = weight('w', f32[8])",
        "a: f32[n, 8] = rms_norm(x, w, eps=1)",
        "b: f32[n, 8] = rms_norm(x, w, eps=1.0)",
        "c: f32[n, 8] = add(a, b)",
        "return c",
    )
    assert_left_alone(cleanup, before)


def test_effects_are_neither_dropped_nor_shared() -> None:
    again = APPEND.replace("cache", "again").replace("key", "k")
    before = module(STEP, APPEND.replace("key", "k"), again, "y: f32[n, 8] = silu(q)", "return y")
    assert_left_alone(cleanup, before)


def test_a_function_that_changes_state_is_called_and_a_pure_one_only_if_read() -> None:
    text = (
        f"n = dim(1, 64)\n\n@function\ndef writes({STEP}):\n    {APPEND.replace('key', 'k')}\n"
        "    return cache\n\n@function\ndef pure(x: f32[n, 8]):\n    y: f32[n, 8] = silu(x)\n"
        f"    return y\n\n@function\ndef f({STEP}):\n"
        "    a: f16[9, 1, 2, 1, 64] = writes(q, k, v, cos, sin, other, kv, positions, seq_ids,"
        " indptr, table, start, size, seq)\n"
        "    b: f32[n, 8] = pure(q)\n    return q\n\nentry('f')\n"
    )
    done = cleanup(parse_module(text))
    verify(done, infer)
    assert list(done.functions) == ["writes", "f"]
    assert [b.call.op for b in done.functions["f"].bindings] == ["writes"]


def test_constants_that_nobody_reads_are_dropped() -> None:
    constants = "constant('read', (2,), [1.0, 2.0])\nconstant('unread', (2,), [1.0, 2.0])"
    before = module(
        "x: f32[n, 2]",
        "a = weight('read', f32[2])",
        "b = weight('unread', f32[2])",
        "y: f32[n, 2] = add(x, a)",
        "return y",
        more=constants,
    )
    done = cleanup(before)
    assert list(done.constants) == ["read"]
    assert [w.name for w in done.functions["f"].weights] == ["read"]


# pipeline


def test_every_pass_is_dumped_in_order_as_text_that_parses() -> None:
    before = module("x: f32[n, 8]", "y: f32[n, 8] = silu(x)", "return y")
    dumped: dict[str, str] = {}
    passes = [("first", lambda m: m), ("second", cleanup)]
    done = run(before, passes, dumped.__setitem__)
    assert list(dumped) == ["00_trace", "01_first", "02_second"]
    assert equal(parse_module(dumped["02_second"]), done)


def test_a_pass_that_breaks_a_rule_is_named() -> None:
    before = module("x: f32[n, 8]", "y: f32[n, 8] = silu(x)", "return y")

    def forgets(m: IRModule) -> IRModule:
        return m.map(lambda f: Function(f.name, f.params, (), (), f.results))

    def mistypes(m: IRModule) -> IRModule:
        (binding,) = m.functions["f"].bindings
        wrong = type(binding)(binding.outs, call("cast", *binding.call.args, dtype="f16"))
        return m.map(lambda f: Function(f.name, f.params, (), (wrong,), f.results))

    with pytest.raises(InvalidIR, match="after pass forgets: function f: result y is defined now"):
        run(before, [("forgets", forgets)])
    with pytest.raises(InvalidIR, match="after pass mistypes: function f: cast gives f16"):
        run(before, [("mistypes", mistypes)])
