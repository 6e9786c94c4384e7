"""The operators of `ops.recurrence` in numpy, on one document from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def convolved(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """causal_conv: x [n, channels], weight [channels, 1, kernel]."""
    kernel = weight.shape[2]
    before = np.concatenate([np.zeros((kernel - 1, x.shape[1]), np.float32), x])
    total = np.zeros_like(x) if bias is None else np.broadcast_to(bias, x.shape).copy()
    for j in range(kernel):
        total += weight[:, 0, j] * before[j : j + len(x)]
    return total


def scanned(given: Sequence[Array], learned: Sequence[Array], heads: int, state: int) -> Array:
    """ssm_scan: `given` x, b, c and dt [n, ...], `learned` a_log and d [heads]."""
    x, b, c, dt = given
    a_log, d = learned
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
