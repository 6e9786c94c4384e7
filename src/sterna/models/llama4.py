"""Llama 4 (text): layers that see a chunk and rotate, and every fourth sees all and does not.

Queries of the latter grow with their position. A token goes to one expert, to which it is given
multiplied by its share, beside an expert that all tokens share.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import MAX_LAYERS, DecoderConfig, Fields, LayerKind
from sterna.models.family import Family, Names, Stack, attention_options
from sterna.nn.attention import Attention
from sterna.nn.moe import ExpertOptions
from sterna.nn.norm import HeadNorm


class Llama4(Family):
    """intermediate_size is that of experts; dense layers have their own."""

    MODEL_TYPES = ("llama4_text",)
    ARCHITECTURES = ("Llama4ForCausalLM",)
    KEYS = (
        "rms_norm_eps attention_bias intermediate_size_mlp num_local_experts num_experts_per_tok "
        "moe_layers interleave_moe_layer_step use_qk_norm no_rope_layers no_rope_layer_interval "
        "attention_chunk_size attn_temperature_tuning floor_scale attn_scale layer_types "
        "router_jitter_noise"
    )
    NAMES: ClassVar[Names] = {"mlp": "feed_forward", "gate": "router"}
    STACKED: ClassVar = {
        "experts.gate_up_proj": Stack(("gate_proj", "up_proj")),
        "experts.down_proj": Stack(("down_proj",)),
    }

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        size = f.positive("intermediate_size", 8192)
        kinds = layer_kinds(f)
        chunks = ["chunked_attention" if kind.chunk else "full_attention" for kind in kinds]
        f.refuse_unless("layer_types", [chunks, None])
        tuned = f.config.get("attn_temperature_tuning", True)
        if type(tuned) is not int:  # 4 in the first files
            tuned = f.flag("attn_temperature_tuning", True)
        temper = (float(f.positive("floor_scale", 8192)), f.number("attn_scale", 0.1))
        return f.decoder(
            eps=("rms_norm_eps", 1e-5),
            head_dim=f.positive("head_dim", 128),
            kv_heads=8,
            theta=500000.0,
            interleaved=True,
            attention_bias=f.flag("attention_bias"),
            intermediate_size=f.positive("intermediate_size_mlp", 16384),
            head_norms=f.flag("use_qk_norm", True),
            temper=temper if tuned else None,
            kinds=kinds,
            experts=ExpertOptions(
                experts=f.positive("num_local_experts", 16),
                chosen=f.positive("num_experts_per_tok", 1),
                intermediate_size=size,
                over_chosen=False,
                score="sigmoid",
                weigh="questions",
                shared_size=size,
            ),
        )

    @classmethod
    def attention(cls, c: DecoderConfig, kind: LayerKind, dtype: DType) -> Attention:
        """Heads are normalized after their rotation, which changes no length: so before as well."""
        rotates = kind.rope is not None
        norms = (
            HeadNorm(c.head_dim, c.norm_eps, dtype, weight=False)
            for _ in "qk" if c.head_norms and rotates
        )  # fmt: skip
        temper = None if rotates else c.temper
        return Attention(attention_options(c, kind, dtype, temper=temper), *norms)


def layer_kinds(f: Fields) -> list[LayerKind]:
    """Which layers rotate (and see a chunk), which have experts."""
    layers = f.positive("num_hidden_layers", most=MAX_LAYERS)
    period, step = (
        f.positive("no_rope_layer_interval", 4),
        f.positive("interleave_moe_layer_step", 1),
    )
    rotates = f.config.get("no_rope_layers") or [(i + 1) % period != 0 for i in range(layers)]
    sparse = f.config.get("moe_layers")
    sparse = list(range(step - 1, layers, step)) if sparse is None else sparse
    if not isinstance(rotates, list) or len(rotates) < layers or not isinstance(sparse, list):
        raise CheckpointError(
            "no_rope_layers in config.json must list a flag for each layer, moe_layers numbers of "
            "layers"
        )
    chunk = f.positive("attention_chunk_size", 8192)
    limited = "attention_chunk_size" not in f.config or f.config["attention_chunk_size"] is not None
    return [
        LayerKind(
            rope=0 if rotates[i] else None,
            chunk=chunk if rotates[i] and limited else 0,
            experts=i in sparse,
        )
        for i in range(layers)
    ]
