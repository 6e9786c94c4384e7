"""The bounds that a library is compiled for, and what its cache keeps.

In: a model folder, and CompileOptions, which say what shall differ from the folder's own words.
Out: Sizes, and a dtype; UsageError where they cannot be. Knows nothing of graphs or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sterna import models
from sterna.base.artifact import CompileOptions, Pooling
from sterna.base.dtype import F16, F32, I8, DType
from sterna.base.errors import UsageError
from sterna.base.target import Target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.models.rope_scaling import longest_context
from sterna.nn.decoder import Cache

_PREFILL_CHUNK, _MAX_BATCH = 512, 8  # where the folder's configuration is silent

_KV_DTYPES: Mapping[str, DType] = {"f16": F16, "q8": I8}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bounds a library is compiled for."""

    context: int
    chunk: int
    batch: int
    window: int
    sinks: int
    vocabulary: int
    pooling: Pooling | None = None
    normalize: bool = False
    causal: bool = True


def sizes_of(folder: ModelFolder, model_config: dict[str, Any], options: CompileOptions) -> Sizes:
    """The bounds that options, mlc-chat-config.json and config.json give; UsageError where none."""
    config = folder.chat_config
    read = models.family(model_config).read_config(model_config)
    stated = read.max_position_embeddings
    longest = longest_context(read.rope, stated)
    context = _first(options.context_window_size, _positive(config, "context_window_size", stated))
    if context > longest:
        raise UsageError(
            f"context_window_size {context} is longer than the model's {longest} positions"
        )
    usual = _PREFILL_CHUNK if read.causal else context
    chunk = _first(
        options.prefill_chunk_size,
        min(context, _positive(config, "prefill_chunk_size", usual)),
    )
    batch = _first(
        options.max_batch_size,
        _positive(config.get("model_config") or {}, "max_batch_size", _MAX_BATCH),
    )
    for title, value in (("context_window_size", context), ("prefill_chunk_size", chunk),
                         ("max_batch_size", batch)):  # fmt: skip
        if value < 1:
            raise UsageError(f"{title} must be positive, not {value}")
    if chunk > context:
        raise UsageError(f"prefill_chunk_size {chunk} is more than the context of {context} tokens")
    read.check_chunk(chunk, context)
    _check_window(folder, options, read.sliding_window, read.attention_sinks)
    return Sizes(
        context,
        max(chunk, batch),
        batch,
        read.sliding_window,
        read.attention_sinks,
        read.vocab_size,
        read.pooling,
        read.normalize,
        read.causal,
    )


def attention_overrides(options: CompileOptions) -> dict[str, int | None]:
    """As config.json would state them; a window of -1 is none."""
    given: dict[str, int | None] = {}
    if options.sliding_window_size is not None:
        window = options.sliding_window_size
        given["sliding_window"] = None if window == -1 else window
    if options.attention_sink_size is not None:
        given["attention_sink_size"] = options.attention_sink_size or None
    return given


def cache_dtype(target: Target, options: CompileOptions, cache: Cache) -> DType:
    """What the KV cache keeps: what was asked for, else the scheme's, else what can be stored."""
    asked, usual = options.kv_dtype, cache.dtype
    if cache.recurrent and asked not in (None, "f32"):
        raise UsageError(
            f"kv_dtype is {asked}, but a recurrent model keeps its states in f32; leave it out"
        )
    if asked is None:
        return usual if usual.name in target.small_numbers else F32
    if asked not in _KV_DTYPES:
        raise UsageError(f"kv_dtype is {asked!r}, possible are {', '.join(_KV_DTYPES)}")
    if _KV_DTYPES[asked].name not in target.small_numbers:
        raise UsageError(
            f"kv_dtype is {asked}, but {target.spec} stores no such numbers; leave the option out"
        )
    return _KV_DTYPES[asked]


def cache_dtype_name(dtype: DType) -> str:
    """What options and manifests call the dtype of a cache."""
    return next((name for name, kept in _KV_DTYPES.items() if kept == dtype), dtype.name)


def _check_window(folder: ModelFolder, options: CompileOptions, window: int, sinks: int) -> None:
    """Overrides of the attention must all have taken effect."""
    asked = options.sliding_window_size
    if asked not in (None, window):
        raise UsageError(
            f"sliding_window_size {asked} was asked for, but {folder.model_type} models have no "
            "sliding window; leave the option out"
        )
    if sinks and window < 0:
        raise UsageError(
            f"attention_sink_size {sinks} was asked for, but the model has no sliding window for "
            "the sinks to stay outside of; give sliding_window_size too"
        )


def _first(asked: int | None, stated: int) -> int:
    return stated if asked is None else asked


def _positive(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else default
