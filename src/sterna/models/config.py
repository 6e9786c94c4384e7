"""The common fields of decoder configs, read strictly from Hugging Face's keys.

A family's reader lists the keys it understands; everything that would change the forward pass
and is not understood is refused by name, everything that cannot is ignored by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sterna.base.errors import CheckpointError, UnsupportedModel

Config = Mapping[str, object]

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
    "output_scores return_dict_in_generate remove_invalid_values prefix".split()
)


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
        return self.positive(key) if self.config.get(key, default) is not None else -1

    def refuse_unless(self, key: str, allowed: Iterable[object]) -> None:
        """UnsupportedModel when a key is there with another value than those allowed."""
        options = list(allowed)
        if key in self.config and self.config[key] not in options:
            shown = " or ".join(repr(o) for o in options)
            raise UnsupportedModel(
                f"{key} {self.config[key]!r} in config.json is not supported; supported: {shown}"
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
