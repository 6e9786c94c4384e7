"""The operators of `ops.recurrence` in numpy, on one document from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Attrs = Mapping[str, Any]


def _convolved(
    attrs: Attrs, given: Sequence[Array], weight: Array, bias: Array | None = None
) -> Array:
    """causal_conv: x [n, channels], weight [channels, 1, kernel]."""
    (x,) = given
    kernel = weight.shape[2]
    before = np.concatenate([np.zeros((kernel - 1, x.shape[1]), np.float32), x])
    total = np.zeros_like(x) if bias is None else np.broadcast_to(bias, x.shape).copy()
    for j in range(kernel):
        total += weight[:, 0, j] * before[j : j + len(x)]
    return total


def _scanned(attrs: Attrs, given: Sequence[Array], a_log: Array, d: Array) -> Array:
    """ssm_scan: `given` x, b, c and dt [n, ...], a_log and d [heads]."""
    x, b, c, dt = given
    heads, state = int(attrs["heads"]), int(attrs["state"])
    x = x.reshape(len(x), heads, -1)
    share = heads * state // b.shape[1]
    b, c = (np.repeat(a.reshape(len(a), -1, state), share, axis=1) for a in (b, c))
    step = np.logaddexp(dt, np.float32(0.0))
    decay = np.exp(-step * np.exp(a_log))
    kept = np.zeros((heads, x.shape[2], state), np.float32)
    out = np.empty_like(x)
    for n in range(len(x)):
        gain = (step[n, :, None] * b[n])[:, None, :]
        kept = kept * decay[n, :, None, None] + x[n][:, :, None] * gain
        out[n] = (kept * c[n][:, None, :]).sum(axis=-1) + d[:, None] * x[n]
    return out.reshape(len(x), -1)


def _delta(attrs: Attrs, given: Sequence[Array]) -> Array:
    """delta_scan: q, k, v, w, a and b [n, heads * ...]."""
    q, k, v, w, a, b = (x.reshape(len(x), int(attrs["heads"]), -1) for x in given)
    kept = np.zeros((*v.shape[1:], k.shape[2]), np.float32)  # [heads, value, key]
    out = np.empty_like(v)
    for n in range(len(v)):
        found = kept @ a[n][:, :, None]
        kept = kept * w[n][:, None] + found * b[n][:, None] + v[n][:, :, None] * k[n][:, None]
        out[n] = (kept @ q[n][:, :, None])[..., 0]
    return out.reshape(len(out), -1)


def _shifted(attrs: Attrs, given: Sequence[Array]) -> Array:
    """token_shift: x [n, channels]."""
    (x,) = given
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


# How many arrays of an operator have a row for each token, and what it makes of those of one
# document and of what is learned.
WALKS: Mapping[str, tuple[int, Callable[..., Array]]] = {
    "causal_conv": (1, _convolved),
    "ssm_scan": (4, _scanned),
    "delta_scan": (6, _delta),
    "token_shift": (1, _shifted),
}
