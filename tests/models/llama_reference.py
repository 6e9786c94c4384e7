"""The forward pass of a Llama-kind model in float64 numpy, as the papers write it.

In: a config, weights under checkpoint names, token ids, frequencies. Out: logits at every position.
It is an oracle independent of torch and of our own graph: whole prefill, no cache, no batching.
Only the rotary angles are float32, as they are in every implementation, and keys and values are
rounded where the caller says in what dtype a cache would hold them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tiny
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.float64]


def forward(
    config: Mapping[str, object],
    weights: tiny.Weights,
    prompt: tuple[int, ...],
    frequencies: tuple[NDArray[np.float32], float],
    cached_as: DTypeLike = np.float64,
) -> Array:
    """Return logits, float64 (len(prompt), vocab)."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    positions = np.arange(len(prompt), dtype=np.float32)[:, None]
    angles = (positions * frequencies[0]).astype(np.float64)
    turn = np.exp(1j * angles) * frequencies[1]  # (tokens, head_dim / 2)
    x = w["model.embed_tokens.weight"][list(prompt)]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = _norm(config, x, w[f"{at}input_layernorm.weight"])
        x = x + _attention(config, w, at, y, turn, cached_as)
        y = _norm(config, x, w[f"{at}post_attention_layernorm.weight"])
        gate = _linear(w, f"{at}mlp.gate_proj", y)
        y = gate / (1 + np.exp(-gate)) * _linear(w, f"{at}mlp.up_proj", y)
        x = x + _linear(w, f"{at}mlp.down_proj", y)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return _norm(config, x, w["model.norm.weight"]) @ head.T


def _attention(
    config: Mapping[str, object],
    w: Mapping[str, Array],
    at: str,
    x: Array,
    turn: NDArray,
    cached_as: DTypeLike,
) -> Array:
    tokens, size = len(x), tiny.head_dim(config)
    q, k, v = (
        _linear(w, f"{at}self_attn.{name}_proj", x).reshape(tokens, -1, size) for name in "qkv"
    )
    group = q.shape[1] // k.shape[1]
    q = _rotate(q, turn)
    k, v = (
        np.repeat(x.astype(cached_as).astype(np.float64), group, 1) for x in (_rotate(k, turn), v)
    )
    scores = np.einsum("ihd,jhd->hij", q, k) * size**-0.5
    behind = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]  # query minus key position
    window = config.get("sliding_window") or tokens
    scores = np.where((behind >= 0) & (behind < window), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = np.einsum("hij,jhd->ihd", shares, v).reshape(tokens, -1)
    return _linear(w, f"{at}self_attn.o_proj", mixed)


def _rotate(x: Array, turn: NDArray) -> Array:
    """Pair dimension i with i + head_dim / 2 (Hugging Face's order, not the paper's neighbours)."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * turn[:, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _norm(config: Mapping[str, object], x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def _linear(w: Mapping[str, Array], name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)
