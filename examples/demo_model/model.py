"""A Llama in plain PyTorch, by the conventions of Hugging Face's `LlamaForCausalLM`.

In: token ids `(batch, length)`. Out: logits `(batch, length, vocab)`, float32. Parameter names are
those of the checkpoint. RMSNorm, half-split rotary embedding (Su et al., 2021), grouped-query
attention (Ainslie et al., 2023), SwiGLU (Shazeer, 2020), tied embeddings. It also says what group
quantization makes of a weight, so that training and evaluation can show the network its 4-bit self.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "torch_dtype": "float16",
}
GROUP = 32


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, self.head_dim = config["hidden_size"], config["head_dim"]
        query, kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, query * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv * self.head_dim, bias=False)
        self.o_proj = nn.Linear(query * self.head_dim, hidden, bias=False)
        self.repeat = query // kv

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """`x` and the result are `(batch, length, hidden)`; `cache` holds earlier keys, values."""
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (
            p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        causal = not cache
        if cache is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache, (k, v))) if cache else (k, v)
            cache[:] = (k, v)
        k, v = (t.repeat_interleave(self.repeat, dim=1) for t in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and the result are `(batch, length, hidden)`."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """`x` and the result are `(batch, length, hidden)`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers and final norm: what the checkpoint calls `model`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class Llama(nn.Module):
    """The whole network; the head is the embedding, transposed."""

    def __init__(self, config: Mapping[str, Any] = CONFIG) -> None:
        super().__init__()
        self.model = Body(config)
        half = config["head_dim"] // 2
        frequency = config["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(config["max_position_embeddings"]), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)  # (positions, head_dim)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(
        self, ids: Tensor, where: Tensor | None = None, caches: list[list[Tensor]] | None = None
    ) -> Tensor:
        """Logits `(batch, length, vocab)`, or `(count, vocab)` at the places `where` marks.

        `caches` is one list a layer, empty at first. Then `ids` may be a whole prompt once, and
        one token a row after that.
        """
        x = self.model.embed_tokens(ids)
        past = caches[0][0].shape[2] if caches and caches[0] else 0
        places = slice(past, past + ids.shape[1])
        for index, layer in enumerate(self.model.layers):
            x = layer(x, self.cos[places], self.sin[places], caches[index] if caches else None)
        chosen = x if where is None else x[where]
        return functional.linear(self.model.norm(chosen), self.model.embed_tokens.weight)


def quantized(weight: Tensor, bits: int) -> Tensor:
    """`weight` after symmetric quantization in groups of 32 along its rows, scales in float16."""
    largest = 2 ** (bits - 1) - 1
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True) / largest).half().float().clamp_min(1e-8)
    return ((groups / scale).round().clamp(-largest, largest) * scale).flatten(-2)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` in float16 as one safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, weight in sorted(weights.items()):
        data = weight.detach().numpy().astype("<f2").tobytes()
        header[name] = {
            "dtype": "F16",
            "shape": list(weight.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, as float32."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    return {
        name: torch.from_numpy(
            np.frombuffer(body[slice(*record["data_offsets"])], "<f2").astype(np.float32)
        ).reshape(record["shape"])
        for name, record in header.items()
        if name != "__metadata__"
    }


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
