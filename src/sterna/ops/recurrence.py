"""Operators that carry a state from token to token, in place of a cache of all tokens.

A recurrent model's cache has a page for each sequence, which holds what all layers keep of it: the
state tensor is [pages, layers, 1, 1, elements] in f32, and `offset` says where in a layer's
elements a state begins. Tokens of a sequence are walked in order, whatever step they come in, so
a prompt in chunks has the bits of the whole. At position 0 a state is zero, whoever had the page
before.
"""

from __future__ import annotations

from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, expect, integer, static

_INDEX = 4  # seq_indptr, positions, page_indptr, page_table


def conv_elements(channels: int, kernel: int) -> int:
    """What a causal convolution keeps of a sequence: its last inputs, all but one of a kernel's."""
    return channels * (kernel - 1)


def _infer_conv(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(x [n, channels], weight [channels, 1, kernel][, bias], cache, index...) -> (like x, cache).

    Each channel is a sum over its own last `kernel` inputs.
    """
    expect(len(types) in (3 + _INDEX, 4 + _INDEX), "causal_conv: takes x, weight[, bias], a cache")
    x, weight = types[0], types[1]
    channels = static(x.shape[1], "causal_conv: the channels")
    expect(
        static(weight.shape[0], "causal_conv: the channels") == channels, "causal_conv: channels"
    )
    _check_room(types[-1 - _INDEX], attrs, conv_elements(channels, static(weight.shape[2], "")))
    return (x, types[-1 - _INDEX])


def _infer_scan(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(x, b, c, dt, a_log, d, cache, index...) -> (like x, the cache).

    Mamba-2's recurrence (Dao and Gu 2024, arXiv:2405.21060) for each of `heads` heads of x
    [n, heads * p], whose state h is [state, p]; b and c are [n, groups * state], neighbouring heads
    sharing a group, dt is [n, heads]:

        step = softplus(dt);  h = exp(-step * exp(a_log)) h + step * b x^T
        y = c h + d x
    """
    expect(len(types) == 7 + _INDEX, "ssm_scan: takes x, b, c, dt, a_log, d and the cache")
    x, b, c, dt = types[:4]
    heads, state = integer(attrs, "heads"), integer(attrs, "state")
    width = static(x.shape[1], "ssm_scan: the width")
    expect(width % heads == 0, "ssm_scan: heads do not divide the width")
    groups = static(b.shape[1], "ssm_scan: b") // state
    expect(static(b.shape[1], "ssm_scan: b") == groups * state, "ssm_scan: the width of b")
    expect(static(c.shape[1], "ssm_scan: c") == groups * state, "ssm_scan: the width of c")
    expect(heads % groups == 0, "ssm_scan: groups do not divide the heads")
    expect(static(dt.shape[1], "ssm_scan: dt") == heads, "ssm_scan: a step for each head")
    _check_room(types[6], attrs, width * state)
    return (x, types[6])


def _infer_delta(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(q, k, v, w, a, b, cache, index...) -> (like v, the cache).

    The generalized delta rule (Peng et al. 2025, "RWKV-7 Goose", arXiv:2503.14456) for each of
    `heads` heads, whose state S is [value, key]; all but v are [n, heads * key]:

        S = S diag(w) + (S a) b^T + v k^T  (S on the right being that of the token before)
        o = S q

    So w decays each key's column, and what the state has for `a` is written at `b`: for a key
    -a of length 1 and b = -a, that is taken away which v then replaces. The gated delta rule (Yang
    et al. 2024, arXiv:2412.06464), with decay g and share beta of a head, is the case
    w = g, a = -k, b = g * beta * k, v = beta * v.
    """
    expect(len(types) == 7 + _INDEX, "delta_scan: takes q, k, v, w, a, b and the cache")
    q, _, v = types[:3]
    heads = integer(attrs, "heads")
    keys = static(q.shape[1], "delta_scan: the keys")
    width = static(v.shape[1], "delta_scan: the width")
    fits = heads > 0 and keys % heads == 0 and width % heads == 0
    expect(fits, "delta_scan: heads do not divide the width")
    for other in (*types[:2], *types[3:6]):
        expect(static(other.shape[1], "delta_scan: keys") == keys, "delta_scan: keys differ")
    _check_room(types[6], attrs, keys // heads * width)
    return (v, types[6])


def _infer_shift(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    """(x [n, channels], cache, index...) -> (x of the token before, 0 at the first; the cache)."""
    expect(len(types) == 2 + _INDEX, "token_shift: takes x and the cache")
    _check_room(types[1], attrs, static(types[0].shape[1], "token_shift: the channels"))
    return types[:2]


def _check_room(cache: TensorType, attrs: Attrs, wanted: int) -> None:
    room = static(cache.shape[4], "the elements of a state")
    expect(integer(attrs, "offset") + wanted <= room, "a state does not fit its page")


CAUSAL_CONV = Op("causal_conv", Kind.OPAQUE, _infer_conv, effect=True)
SSM_SCAN = Op("ssm_scan", Kind.OPAQUE, _infer_scan, effect=True)
DELTA_SCAN = Op("delta_scan", Kind.OPAQUE, _infer_delta, effect=True)
TOKEN_SHIFT = Op("token_shift", Kind.OPAQUE, _infer_shift, effect=True)
