"""The ways in which families join attention and feed-forward layer to the residual stream.

Each takes modules that are made already; the attributes have Llama's names, and a family whose
checkpoints say otherwise has a table for it.
"""

from __future__ import annotations

from sterna.nn.attention import SelfAttention, Step
from sterna.nn.decoder import DecoderLayer
from sterna.nn.mlp import FeedForward
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor


class PreNormLayer(DecoderLayer):
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x))."""

    def __init__(
        self,
        input_layernorm: Norm,
        self_attn: SelfAttention,
        post_attention_layernorm: Norm,
        mlp: FeedForward,
        *,
        scale: float = 1.0,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp
        self.scale = scale

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        attended, cache = self.self_attn(self.input_layernorm(x), cache, step)
        x = x + attended.scaled(self.scale)
        return x + self.mlp(self.post_attention_layernorm(x)).scaled(self.scale), cache


class RecurrentLayer(DecoderLayer):
    """x + scale * mixer(norm(x)), then x + scale * mlp(norm(x)), beside layers with a KV cache.

    `Step.carried` are the states of all such layers.
    """

    def __init__(
        self,
        input_layernorm: Norm,
        mixer: SelfAttention,
        post_attention_layernorm: Norm,
        mlp: FeedForward,
        *,
        scale: float = 1.0,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.mixer = mixer
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp
        self.scale = scale

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, ...]:
        assert step.carried is not None, "a model with such layers has states"
        mixed, states = self.mixer(self.input_layernorm(x), step.carried, step)
        x = x + mixed.scaled(self.scale)
        x = x + self.mlp(self.post_attention_layernorm(x)).scaled(self.scale)
        return x, cache, states


class PostNormLayer(DecoderLayer):
    """x + norm(attention(x)), then x + norm(mlp(x)): the stream itself is never normalized."""

    def __init__(
        self,
        self_attn: SelfAttention,
        post_attention_layernorm: Norm,
        mlp: FeedForward,
        post_feedforward_layernorm: Norm,
    ) -> None:
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp
        self.post_feedforward_layernorm = post_feedforward_layernorm

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        attended, cache = self.self_attn(x, cache, step)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(x)), cache


class NormedSumLayer(DecoderLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)): the Transformer's first form.

    Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762).
    """

    def __init__(
        self,
        self_attn: SelfAttention,
        post_attention_layernorm: Norm,
        mlp: FeedForward,
        post_feedforward_layernorm: Norm,
    ) -> None:
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp
        self.post_feedforward_layernorm = post_feedforward_layernorm

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        attended, cache = self.self_attn(x, cache, step)
        x = self.post_attention_layernorm(x + attended)
        return self.post_feedforward_layernorm(x + self.mlp(x)), cache


class SandwichNormLayer(DecoderLayer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(
        self,
        input_layernorm: Norm,
        self_attn: SelfAttention,
        post_attention_layernorm: Norm,
        pre_feedforward_layernorm: Norm,
        mlp: FeedForward,
        post_feedforward_layernorm: Norm,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.pre_feedforward_layernorm = pre_feedforward_layernorm
        self.mlp = mlp
        self.post_feedforward_layernorm = post_feedforward_layernorm

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        attended, cache = self.self_attn(self.input_layernorm(x), cache, step)
        x = x + self.post_attention_layernorm(attended)
        y = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(y), cache


class ParallelLayer(DecoderLayer):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both unless there is a second."""

    def __init__(
        self,
        input_layernorm: Norm,
        self_attn: SelfAttention,
        mlp: FeedForward,
        post_attention_layernorm: Norm | None = None,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.mlp = mlp
        if post_attention_layernorm is not None:
            self.post_attention_layernorm = post_attention_layernorm

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        normed = self.input_layernorm(x)
        own = getattr(self, "post_attention_layernorm", None)
        beside = normed if own is None else own(x)
        attended, cache = self.self_attn(normed, cache, step)
        # x itself is read before the last kernel, the feed-forward layer's, writes its successor.
        x = x + attended
        return self.mlp(beside) + x, cache
