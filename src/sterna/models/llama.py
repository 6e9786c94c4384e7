"""Llama 1, 2, 3, 3.1, 3.2 and what shares their forward pass: TinyLlama, SmolLM, Mistral.

Pre-norm layers of grouped-query attention with rotary embedding and a SwiGLU feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import DType
from sterna.models.config import Config, Fields
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import RopeOptions, inv_freq
from sterna.nn.attention import Attention, AttentionOptions, Step
from sterna.nn.decoder import Cache, CausalLM, Decoder, DecoderLayer
from sterna.nn.linear import Embedding, Linear, RMSNorm
from sterna.nn.mlp import GatedMLP
from sterna.nn.trace import Tensor

# Weights that are stored stacked along the rows, by the path's last component.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
TIED = ("lm_head.weight", "model.embed_tokens.weight")  # one tensor where the config ties them
IGNORED = ("*.rotary_emb.inv_freq",)  # tables that old checkpoints store though they are computed
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
PAGE_SIZE = 16
MAX_LAYERS, MAX_HEAD_DIM = 4096, 65536  # far above any real model; a hostile config stops here

_KNOWN = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "vocab_size rms_norm_eps max_position_embeddings head_dim tie_word_embeddings attention_bias "
    "mlp_bias hidden_act rope_theta rope_scaling rope_parameters sliding_window "
    "partial_rotary_factor original_max_position_embeddings attention_sink_size max_sequence_length"
).split()


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The fields of config.json that shape the forward pass."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeOptions
    sliding_window: int = -1
    attention_sinks: int = 0


def read_config(config: Config) -> LlamaConfig:
    """config.json to LlamaConfig; UnsupportedModel for what this forward pass does not do."""
    f = Fields(config)
    f.refuse_architectures_but(ARCHITECTURES)
    f.refuse_others(_KNOWN)
    f.refuse_unless("hidden_act", ["silu", "swish"])
    heads, hidden = f.positive("num_attention_heads"), f.positive("hidden_size")
    mistral = config.get("model_type") == "mistral"
    positions = f.positive("max_position_embeddings", 2048)
    f.refuse_unless("max_sequence_length", [positions])  # the same thing in the first conversions
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=f.positive("intermediate_size"),
        num_hidden_layers=f.positive("num_hidden_layers", most=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=f.positive("num_key_value_heads", 8 if mistral else heads),
        head_dim=f.positive("head_dim", max(1, hidden // heads), most=MAX_HEAD_DIM),
        vocab_size=f.positive("vocab_size"),
        rms_norm_eps=f.number("rms_norm_eps", 1e-6),
        max_position_embeddings=positions,
        tie_word_embeddings=f.flag("tie_word_embeddings"),
        attention_bias=f.flag("attention_bias"),
        mlp_bias=f.flag("mlp_bias"),
        rope=rope_options(config),
        sliding_window=f.window("sliding_window", 4096) if mistral else -1,
        attention_sinks=f.positive("attention_sink_size", 0),
    )


class LlamaLayer(DecoderLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: LlamaConfig, dtype: DType) -> None:
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps, dtype)
        self.self_attn = Attention(
            AttentionOptions(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                dtype,
                qkv_bias=c.attention_bias,
                output_bias=c.attention_bias,
                window=c.sliding_window,
                sinks=c.attention_sinks,
            )
        )
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps, dtype)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, dtype, bias=c.mlp_bias)

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        attended, cache = self.self_attn(self.input_layernorm(x), cache, step)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


def build(config: Config, dtype: DType, context_length: int | None = None) -> CausalLM:
    """The model of a config.json, its weights stored as `dtype`."""
    c = read_config(config)
    decoder = Decoder(
        Embedding(c.vocab_size, c.hidden_size, dtype),
        LlamaLayer(c, dtype),
        c.num_hidden_layers,
        RMSNorm(c.hidden_size, c.rms_norm_eps, dtype),
    )
    tied = c.tie_word_embeddings
    head = None if tied else Linear(c.hidden_size, c.vocab_size, dtype, kind="head")
    cache = Cache(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, PAGE_SIZE, dtype)
    frequencies, scaling = inv_freq(c.rope, c.head_dim, context_length)
    return CausalLM(decoder, head, cache, frequencies, scaling)
