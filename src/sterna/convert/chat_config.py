"""`gen_config`: `mlc-chat-config.json` and the tokenizer files of a model folder.

In: a Hugging Face folder (its weights need not be there) and run options. Out: the configuration's
part of a converted model, swapped in whole; the weights' part, which `convert_weight` writes, is
kept. The field names are MLC's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna import models
from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.beside import replace_files
from sterna.checkpoint.folder import TOKENIZER_FILES
from sterna.checkpoint.mlc import CONFIG
from sterna.checkpoint.model_folder import STERNA
from sterna.convert.conv_templates import as_json, make_conv_template
from sterna.convert.output import found_in, kept_recipe, sterna_json
from sterna.convert.source import Source, read_source
from sterna.convert.template_check import check_template
from sterna.convert.tokenizer_info import tokenizer_info
from sterna.models.config import DecoderConfig
from sterna.models.rope_scaling import longest_context
from sterna.text.chat_template import ChatTemplate
from sterna.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512
MAX_BATCH = 8

_SAMPLING = {
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}
_MORE_SAMPLING = ("top_k", "min_p")  # not in MLC's schema: written only where the model states them
_TOKEN_IDS: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the user may set; None follows the model.

    `conv_template` is a name that MLC users know or a JSON file; `context_window_size` is at most
    what the model was made for; sliding window and sinks change the program itself.
    """

    conv_template: str | None = None
    context_window_size: int | None = None
    sliding_window_size: int | None = None
    prefill_chunk_size: int | None = None
    attention_sink_size: int | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The run options after defaults; -1 is MLC's "unset"."""

    context: int
    window: int
    sinks: int
    chunk: int
    batch: int


def gen_config(
    source: Path,
    output: Path,
    *,
    quantization: str,
    model_type: str | None = None,
    options: ChatOptions | None = None,
) -> dict[str, Any]:
    """Write the configuration of a model into `output` and return `mlc-chat-config.json`.

    `output` must be new, empty, or hold this very model. Raises UsageError for options that make
    no sense or do not fit the model, CheckpointError and TokenizerError for damaged files.
    """
    asked = options or ChatOptions()
    output = Path(output).resolve()
    model = read_source(Path(source), quantization, model_type, kept=kept_recipe(output))
    found = found_in(output, model)
    overrides = _overrides(asked.sliding_window_size, asked.attention_sink_size)
    read = _read_with(model, overrides)
    sizes = _sizes(read, asked)
    config = _chat_config(model, sizes, read, asked.conv_template)
    contents: dict[str, bytes | Path] = {
        name: model.folder / name for name in model.tokenizer_files
    }
    template = ChatTemplate.load(model.folder)
    probes = {} if template is None else check_template(template)
    contents[STERNA] = sterna_json(model, found, {"overrides": overrides, "chat_template": probes})
    contents[CONFIG] = as_json(config)
    replace_files(output, contents, removed=(CONFIG, STERNA, *TOKENIZER_FILES))
    return config


def _overrides(window: int | None, sinks: int | None) -> dict[str, Any]:
    """Options that change the program itself, as config.json would state them."""
    overrides: dict[str, Any] = {}
    if window is not None:
        disabled = window == -1
        overrides["sliding_window"] = (
            None if disabled else _positive("sliding_window_size", window, 1)
        )
    if sinks is not None and sinks != 0:
        overrides["attention_sink_size"] = _positive("attention_sink_size", sinks, 1)
    return overrides


def _read_with(model: Source, overrides: Mapping[str, Any]) -> DecoderConfig:
    """The family's reading of the config with the overrides, which must all have taken effect."""
    read = models.family(model.effective).read_config({**model.effective, **overrides})
    window = overrides.get("sliding_window")
    if window is not None and read.sliding_window != window:
        raise UsageError(
            f"sliding_window_size {window} was asked for, but {model.model_type} models have no "
            "sliding window; leave the option out"
        )
    if read.attention_sinks and read.sliding_window < 0:
        raise UsageError(
            f"attention_sink_size {read.attention_sinks} was asked for, but the model has no "
            "sliding window for the sinks to stay outside of; give sliding_window_size too"
        )
    return read


def _sizes(read: DecoderConfig, asked: ChatOptions) -> _Sizes:
    context = _context(read, asked.context_window_size)
    return _Sizes(
        context=context,
        window=read.sliding_window,
        sinks=read.attention_sinks or -1,
        chunk=_chunk(asked.prefill_chunk_size, context, read),
        batch=_positive("max_batch_size", asked.max_batch_size, MAX_BATCH),
    )


def _context(read: DecoderConfig, asked: int | None) -> int:
    """The context length: what the model was made for, or less; never more."""
    longest = longest_context(read.rope, read.max_position_embeddings)
    context = _positive("context_window_size", asked, read.max_position_embeddings)
    if context > longest:
        raise UsageError(
            f"context_window_size {context} is longer than the model's {longest} positions "
            f"(max_position_embeddings {read.max_position_embeddings} in config.json)"
        )
    return context


def _chunk(asked: int | None, context: int, read: DecoderConfig) -> int:
    usual = min(PREFILL_CHUNK, context) if read.causal else context
    chunk = _positive("prefill_chunk_size", asked, usual)
    read.check_chunk(chunk, context)
    if chunk > context:
        raise UsageError(
            f"prefill_chunk_size {chunk} is more than the context of {context} tokens; "
            f"give at most {context}"
        )
    return chunk


def _positive(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise UsageError(f"{name} must be a positive whole number, not {value!r}")
    return value


def _chat_config(
    model: Source, sizes: _Sizes, read: DecoderConfig, conv_template: str | None
) -> dict[str, Any]:
    stated = {key: _stated_ids(model, key, default) for key, default in _TOKEN_IDS.items()}
    tokenizer = Tokenizer.load(model.folder)
    template = ChatTemplate.load(model.folder)
    eos = stated["eos_token_id"]
    stops = [*(eos if isinstance(eos, list) else [eos]), *tokenizer.eos_ids]
    if not any(0 <= stop < read.vocab_size for stop in stops):
        raise CheckpointError(
            f"{model.folder} names the end token {stops[0]}, and the model has {read.vocab_size} "
            "tokens, so no answer would ever end; mend eos_token_id in generation_config.json"
        )
    return {
        "version": "0.1.0",
        "model_type": model.model_type,
        "quantization": model.quantization.name,
        "model_config": _model_config(model, sizes),
        "vocab_size": read.vocab_size,
        "context_window_size": sizes.context,
        "sliding_window_size": sizes.window,
        "prefill_chunk_size": sizes.chunk,
        "attention_sink_size": sizes.sinks,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": min(tokenizer.vocab_size, read.vocab_size),
        **_sampling(model),
        "tokenizer_files": list(model.tokenizer_files),
        "tokenizer_info": tokenizer_info(model.folder, tokenizer),
        "conv_template": make_conv_template(conv_template, template, tokenizer, stops),
        **stated,
        **_task(read),
    }


def _task(read: DecoderConfig) -> dict[str, Any]:
    """What MLC calls the model's task."""
    if read.pooling is None:
        return {"model_task": "chat", "embedding_metadata": None}
    metadata = {
        "model_type": "decoder" if read.causal else "encoder",
        "pooling_strategy": read.pooling,
        "normalize": read.normalize,
    }
    return {"model_task": "embedding", "embedding_metadata": metadata}


def _model_config(model: Source, sizes: _Sizes) -> dict[str, Any]:
    """What MLC calls model_config: the family's fields by MLC's names, and the run options."""
    config = model.effective
    read = models.family(config).read_config(config)
    fields = {
        "hidden_size": read.hidden_size,
        "intermediate_size": read.intermediate_size,
        "num_attention_heads": read.num_attention_heads,
        "num_hidden_layers": read.num_hidden_layers,
        "rms_norm_eps": read.norm_eps,
        "vocab_size": read.vocab_size,
        "tie_word_embeddings": read.tie_word_embeddings,
        "position_embedding_base": read.rope.theta,
        "rope_scaling": _rope_scaling(config),
        "context_window_size": sizes.context,
        "prefill_chunk_size": sizes.chunk,
        "num_key_value_heads": read.num_key_value_heads,
        "head_dim": read.head_dim,
        "attention_bias": read.qkv_bias,
        "mlp_bias": read.mlp_bias,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": sizes.batch,
        "disaggregation": False,
    }
    if sizes.window > 0:
        fields["sliding_window_size"] = sizes.window
        fields["attention_sink_size"] = max(0, sizes.sinks)
    return fields


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling in its older form, whichever form the config has; None for plain RoPE."""
    section = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = section.get("rope_type", section.get("type", "default"))
    if kind == "default":
        return None
    rest = {key: value for key, value in section.items() if key not in ("type", "rope_theta")}
    return {**rest, "rope_type": kind}


def _sampling(model: Source) -> dict[str, Any]:
    """The model's own sampling defaults: generation_config.json, then config.json, then MLC's."""
    found = {key: _stated_number(model, key, default) for key, default in _SAMPLING.items()}
    more = {key: _stated_number(model, key, None) for key in _MORE_SAMPLING}
    return {**found, **{key: value for key, value in more.items() if value is not None}}


def _stated(model: Source, key: str) -> Any:
    value = model.generation_config.get(key)
    return model.config.get(key) if value is None else value


def _stated_number(model: Source, key: str, default: float | None) -> float | None:
    value = _stated(model, key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(
            f"{key} in {model.folder}'s configuration must be a number, not {value!r:.80}"
        )
    return value


def _stated_ids(model: Source, key: str, default: int) -> int | list[int]:
    value = _stated(model, key)
    if value is None:
        return default
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(one) is not int for one in ids):
        raise CheckpointError(
            f"{key} in {model.folder}'s configuration must be a token id or a list of them, "
            f"not {value!r:.80}"
        )
    return list(ids) if isinstance(value, list) else int(value)
