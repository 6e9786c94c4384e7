"""The common fields of decoder configs, read strictly from Hugging Face's keys.

A family's reader lists the keys it understands; everything that would change the forward pass
and is not understood is refused by name, everything that cannot is ignored by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sterna.base.artifact import Pooling
from sterna.base.errors import CheckpointError, UnsupportedModel, UsageError
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import DEFAULT_THETA, RopeOptions
from sterna.nn.attention import Projections
from sterna.nn.delta import DeltaOptions
from sterna.nn.grid_vision import GridOptions
from sterna.nn.latent import LatentOptions
from sterna.nn.mamba import MambaOptions
from sterna.nn.mlp import ACTIVATIONS
from sterna.nn.moe import ExpertOptions
from sterna.nn.rwkv import RwkvOptions
from sterna.nn.vision import VisionOptions

Config = Mapping[str, object]
MAX_LAYERS, MAX_HEAD_DIM = 4096, 65536  # far above any real model; a hostile config stops here

# Keys that say nothing about the forward pass of inference.
REMARKS = frozenset(
    "architectures model_type _name_or_path transformers_version torch_dtype dtype use_cache "
    "initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop bos_token_id "
    "eos_token_id pad_token_id unk_token_id pretraining_tp auto_map id2label label2id "
    "problem_type num_labels is_encoder_decoder chunk_size_feed_forward output_attentions "
    "output_hidden_states return_dict torchscript tokenizer_class task_specific_params "
    "gradient_checkpointing unsloth_version unsloth_fixed max_length rope_interleaved "
    "attn_implementation _attn_implementation _attn_implementation_autoset bos_token "
    "eos_token layer_norm_eps is_llama_config is_decoder add_cross_attention "
    "cross_attention_hidden_size tie_encoder_decoder pruned_heads "
    # how older files say what generation_config.json says now
    "temperature top_p top_k min_p typical_p repetition_penalty presence_penalty "
    "frequency_penalty length_penalty do_sample num_beams num_beam_groups num_return_sequences "
    "min_length max_new_tokens no_repeat_ngram_size diversity_penalty early_stopping "
    "output_scores return_dict_in_generate remove_invalid_values prefix "
    # dropout, losses and heads of training
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj scale_attn_weights hidden_dropout_prob attention_probs_dropout_prob "
    "classifier_dropout router_aux_loss_coef output_router_logits cache_implementation "
    "residual_dropout embedding_dropout attn_pdrop n_ctx".split()
)

# Names that GPT-2 and its descendants have for Llama's.
GPT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "model": "transformer",
        "embed_tokens": "wte",
        "layers": "h",
        "input_layernorm": "ln_1",
        "self_attn": "attn",
        "norm": "ln_f",
    }
)

# Names that Megatron has for the products of a layer.
MEGATRON_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "qkv_proj": "query_key_value",
        "o_proj": "dense",
        "up_proj": "dense_h_to_4h",
        "down_proj": "dense_4h_to_h",
    }
)

# Keys of config.json that GPT-2 and its descendants have for the common ones.
GPT_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    }
)

# What `Fields.decoder` reads, whatever the family.
COMMON = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "vocab_size max_position_embeddings head_dim tie_word_embeddings hidden_act rope_theta "
    "rope_scaling rope_parameters partial_rotary_factor original_max_position_embeddings "
    "max_sequence_length sentence_pooling sentence_normalize".split()
)


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ from layer to layer. `rope` numbers a table of angles, None is none.

    With a `chunk` a token sees its own chunk of so many positions alone. `first` is the first layer
    of a model that has another form for it. A `recurrent` layer has a state, others attention.
    """

    window: int = -1
    chunk: int = 0
    rope: int | None = 0
    experts: bool = False
    first: bool = False
    recurrent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """What shapes the forward pass of a decoder, whichever keys its config.json has for it.

    `kinds` holds one LayerKind a layer; `local_rope` is the table of angles numbered 1, where a
    model has two. A `query_scale` of 0 is 1 / sqrt(head_dim), a `qkv_clip` of 0 none. `parallel`
    layers have attention and feed-forward layer side by side, with `two_norms` a norm for each;
    `head_norms` are of queries and keys;
    `interleaved`, `projections` and `temper` are of AttentionOptions; with `latent` sizes heads'
    have keys and values from one small vector a token, with `mamba`, `rwkv` or `delta` sizes layers
    have a state and no attention. A model with `pooling` embeds texts and has no head; without
    `causal` every token sees its whole sequence. `vision` is what looks at images; with
    `rope_sections` a token has as many positions, and each turns so many pairs of dims.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    act: str
    kinds: tuple[LayerKind, ...]
    rope: RopeOptions
    rotary: bool = True
    layer_norm: bool = False
    gated: bool = True
    parallel: bool = False
    two_norms: bool = False
    interleaved: bool = False
    projections: Projections = "apart"
    local_rope: RopeOptions | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    attention_sinks: int = 0
    query_scale: float = 0.0
    score_softcap: float = 0.0
    logit_softcap: float = 0.0
    logit_scale: float = 1.0
    embedding_scale: float = 1.0
    experts: ExpertOptions | None = None
    latent: LatentOptions | None = None
    mamba: MambaOptions | None = None
    rwkv: RwkvOptions | None = None
    delta: DeltaOptions | None = None
    residual_scale: float = 1.0
    qkv_clip: float = 0.0
    head_norms: bool = False
    temper: tuple[float, float] | None = None
    causal: bool = True
    token_types: int = 0
    pooling: Pooling | None = None
    normalize: bool = False
    vision: VisionOptions | GridOptions | None = None
    rope_sections: tuple[int, ...] = ()

    def check_chunk(self, chunk: int, context: int) -> None:
        """UsageError where steps of `chunk` tokens would cut the texts of an encoder."""
        if not self.causal and chunk < context:
            raise UsageError(
                f"prefill_chunk_size is {chunk}, but an encoder takes a text as a whole: give the "
                f"context's {context} tokens, or leave the option out"
            )

    @property
    def recurrent(self) -> bool:
        """Whether layers, all or some, keep a state of a sequence, and not its tokens."""
        states = self.mamba is not None or self.rwkv is not None
        return states or any(kind.recurrent for kind in self.kinds)

    @property
    def sliding_window(self) -> int:
        """The window of all layers; -1 where they differ or have none."""
        windows = {kind.window for kind in self.kinds}
        return windows.pop() if len(windows) == 1 else -1

    @property
    def ropes(self) -> tuple[RopeOptions, ...]:
        """The tables of angles, by number."""
        tables = (self.rope, self.local_rope)
        return tuple(rope for rope in tables if rope is not None) if self.rotary else ()


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to a config with errors that name the key."""

    config: Config

    def positive(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"config.json has no {key}")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise CheckpointError(
                f"{key} in config.json must be a whole number from 1 to {most}, not {value!r}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise CheckpointError(f"{key} in config.json must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{key} in config.json must be true or false, not {value!r}")
        return value

    def window(self, key: str, default: int) -> int:
        """A sliding window in tokens, -1 for none (null)."""
        return self.positive(key, default) if self.config.get(key, default) is not None else -1

    def decoder(self, **own: Any) -> DecoderConfig:
        """The fields that every decoder has; `own` are what a family reads otherwise or adds.

        `kinds` may be one LayerKind for all layers, `attention_bias` stands for both of its biases;
        `kv_heads`, `positions`, `tied`, `usual_act`, `partial` and `theta` are what silence means.
        """
        layers = self.positive("num_hidden_layers", most=MAX_LAYERS)
        bias = own.pop("attention_bias", False)
        kinds, partial = own.pop("kinds", LayerKind()), own.pop("partial", None)
        theta = own.pop("theta", DEFAULT_THETA)
        heads, hidden = self.positive("num_attention_heads"), self.positive("hidden_size")
        positions = self.positive("max_position_embeddings", own.pop("positions", 2048))
        self.refuse_unless("max_sequence_length", [positions])  # in the first conversions
        found: dict[str, Any] = {
            "hidden_size": hidden,
            "intermediate_size": self.positive("intermediate_size", own.pop("inner", None)),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.positive("num_key_value_heads", own.pop("kv_heads", heads)),
            "head_dim": self.positive("head_dim", max(1, hidden // heads), most=MAX_HEAD_DIM),
            "vocab_size": self.positive("vocab_size"),
            "norm_eps": own.get("norm_eps") or self.number(*own.pop("eps", ("rms_norm_eps", 1e-6))),
            "max_position_embeddings": positions,
            "tie_word_embeddings": self.flag("tie_word_embeddings", own.pop("tied", False)),
            "act": self.activation(own.pop("act_key", "hidden_act"), own.pop("usual_act", "silu")),
            "kinds": (kinds,) * layers if isinstance(kinds, LayerKind) else tuple(kinds),
            "qkv_bias": bias,
            "output_bias": bias,
            "pooling": self.pooling(own.pop("usual_pooling", None)),
            "normalize": self.flag("sentence_normalize"),
            "rope": own.get("rope") or rope_options(self.config, partial, theta=theta),
        }
        result = DecoderConfig(**{**found, **own})
        _check_heads(result)
        return result

    def sliding(self, default: Callable[[int], bool], *, used: bool = True) -> list[bool]:
        """For each layer whether it has the sliding window; `default` where layer_types is not."""
        layers = self.positive("num_hidden_layers", most=MAX_LAYERS)
        usual = ("sliding_attention" if default(i) else "full_attention" for i in range(layers))
        return [used and t == "sliding_attention" for t in self.layer_types(layers, list(usual))]

    def activation(self, key: str, default: str) -> str:
        """The operator that an activation's name means."""
        given = self.config.get(key)
        name = default if given is None else given
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise UnsupportedModel(
                f"{key} {name!r} in config.json is not supported; supported: "
                f"{', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[name]

    def pooling(self, usual: Pooling | None) -> Pooling | None:
        """How the folder's modules.json, noted in the config, makes one vector of a text's."""
        given = self.config.get("sentence_pooling")
        for known in ("cls", "last", "mean"):
            if given == known:
                return known
        if given is not None:
            raise UnsupportedModel(
                f"pooling {given!r:.60} is not supported; supported: cls, last and mean"
            )
        return usual

    def recurrent(self, default: Callable[[int], bool], **others: str) -> list[bool]:
        """For each layer whether it has a state; `others` are older names of types."""
        layers = self.positive("num_hidden_layers", most=MAX_LAYERS)
        usual = ["linear_attention" if default(i) else "full_attention" for i in range(layers)]
        types = self.layer_types(layers, usual, ("full_attention", "linear_attention", *others))
        return [others.get(t, t) == "linear_attention" for t in types]

    def layer_types(
        self,
        layers: int,
        default: list[str],
        known: tuple[str, ...] = ("full_attention", "sliding_attention"),
    ) -> list[str]:
        """The type of each layer, one of those known."""
        given = self.config.get("layer_types")
        types = default if given is None else given
        if not isinstance(types, list) or len(types) != layers:
            raise CheckpointError(
                f"layer_types in config.json must list the kind of each of the {layers} layers"
            )
        for name in types:
            if name not in known:
                raise UnsupportedModel(
                    f"layer type {str(name)[:60]!r} in config.json is not supported; supported: "
                    f"{' and '.join(known)}"
                )
        return types

    def refuse_unless(self, key: str, allowed: Iterable[object]) -> None:
        """UnsupportedModel when a key is there with another value than those allowed."""
        options = list(allowed)
        if key in self.config and self.config[key] not in options:
            shown = " or ".join(repr(o) for o in options)
            raise UnsupportedModel(
                f"{key} {self.config[key]!r} in config.json is not supported; supported: {shown}"
            )

    def refuse_uneven(self, key: str, factor: int) -> None:
        """UnsupportedModel for a number that is no multiple of `factor`."""
        value = self.positive(key)
        if value % factor:
            raise UnsupportedModel(
                f"{key} {value} in config.json is not supported; supported: multiples of {factor}"
            )

    def refuse_architectures_but(self, allowed: Iterable[str]) -> None:
        """UnsupportedModel for a model whose head or task is another; no architectures is fine."""
        given = self.config.get("architectures") or []
        options = list(allowed)
        for name in given if isinstance(given, list) else [given]:
            if name not in options:
                raise UnsupportedModel(
                    f"the architecture {name!r} in config.json is not supported; "
                    f"this family has {' and '.join(options)}"
                )

    def refuse_others(self, known: Iterable[str]) -> None:
        """UnsupportedModel naming the first key that is neither known nor a mere remark.

        A key that is null or false switches something off, so it cannot change the forward pass.
        """
        given = {key for key, value in self.config.items() if value not in (None, False)}
        unknown = sorted(given - set(known) - REMARKS)
        if unknown:
            raise UnsupportedModel(
                f"config.json has {unknown[0]} = {self.config[unknown[0]]!r}, "
                "which this family does not read; it may change what the model computes"
            )


def section(config: Config, key: str) -> Config:
    """An object inside of a config."""
    value = config.get(key)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json has no {key}, which is an object in this family")
    return value


def _check_heads(c: DecoderConfig) -> None:
    """Query heads must share key heads evenly."""
    if c.num_attention_heads % c.num_key_value_heads:
        raise CheckpointError(
            f"config.json gives {c.num_attention_heads} attention heads and "
            f"{c.num_key_value_heads} key-value heads; the former must be a multiple of the latter"
        )
