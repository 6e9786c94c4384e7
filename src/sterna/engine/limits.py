"""How much an engine allocates: options and manifest in, the numbers of the running engine out.

A decision made once, before anything is allocated; nothing grows afterwards. Knows no device:
the caller says how many pages fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sterna.base.artifact import Manifest
from sterna.base.errors import OutOfMemory, RequestError
from sterna.base.target import KINDS
from sterna.engine.options import EngineOptions, Mode, PrefillMode

_LOCAL_SEQUENCES = 4
_LOCAL_TOKENS = 8192
_CHUNK = 256  # tokens in a processor's step: more are no faster, and fill more memory
_SPARE_WINDOWS = 2  # of cache in server mode, for each sequence: its own, and one to remember


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may use. `window` is the longest sequence, prompt and answer.

    A model with a sliding window sees the last `sliding` tokens and the first `sinks`.
    """

    max_sequences: int
    chunk: int  # tokens in a step
    num_pages: int
    page_size: int
    window: int
    rows: int = 32  # logits in a step
    prefill_mode: PrefillMode = PrefillMode.HYBRID
    prefix_cache: bool = True
    sliding: int | None = None
    sinks: int = 0
    recurrent: bool = False  # a sequence has one page, its state, and nobody else can go on from it


def plan(options: EngineOptions, manifest: Manifest, fitting_pages: int | None = None) -> Limits:
    """Choose the limits; RequestError for what the library was not compiled for.

    local: 4 sequences share one window of up to 8192 tokens; interactive: one sequence has the
    whole window; server: as many sequences as the library allows, and two windows of cache for
    each, one to use and one for prefixes to reuse, as far as `fitting_pages` go. A recurrent
    model has a page for each sequence, whatever the mode.
    """
    model, kv = manifest.model, manifest.kv_cache
    has_states = kv.recurrent or manifest.states is not None
    if has_states:
        _refuse_returns(options)
    sequences = _within(
        "max_num_sequence", options.max_num_sequence, model.max_batch_size, _sequences(options)
    )
    chunk = _within(
        "prefill_chunk_size", options.prefill_chunk_size, model.prefill_chunk_size, _chunk(manifest)
    )
    window = _within("context_window_size", options.context_window_size, model.context_window_size)
    tokens = options.max_total_tokens or (
        sequences * kv.page_size if kv.recurrent else _tokens(options, sequences, window)
    )
    num_pages = -(-tokens // kv.page_size)
    if fitting_pages is not None and num_pages > fitting_pages:
        num_pages = _fit(options, num_pages, fitting_pages, kv.page_size)
    rows = _rows(manifest)
    return Limits(
        max_sequences=min(sequences, chunk, rows),  # each may decode in every step
        chunk=chunk,
        num_pages=num_pages,
        page_size=kv.page_size,
        window=min(window, num_pages * kv.page_size),
        rows=rows,
        prefill_mode=PrefillMode(options.prefill_mode),
        prefix_cache=options.prefix_cache and not has_states,
        sliding=model.sliding_window_size if model.sliding_window_size > 0 else None,
        sinks=model.attention_sink_size,
        recurrent=kv.recurrent,
    )


def draft_limits(own: Limits, manifest: Manifest, num_pages: int) -> Limits:
    """The limits of a draft model that runs beside a model with limits `own`.

    RequestError for a recurrent one, which cannot forget the guesses that were wrong.
    """
    model = manifest.model
    if manifest.kv_cache.recurrent or manifest.states is not None:
        raise RequestError(
            f"the draft model is recurrent ({model.model_type}), and its state cannot go back to "
            "an earlier token; choose one with attention"
        )
    rows = _rows(manifest)
    return Limits(
        max_sequences=min(own.max_sequences, model.max_batch_size, rows),
        chunk=model.prefill_chunk_size,
        num_pages=num_pages,
        page_size=manifest.kv_cache.page_size,
        window=min(own.window, model.context_window_size),
        rows=rows,
    )


def _refuse_returns(options: EngineOptions) -> None:
    """A state goes forward only: what takes tokens back, or goes on from stored pages, is refused.

    Prefixes of prompts are not shared either; that changes no answer, so it is not asked about.
    """
    usual = EngineOptions()
    for name in ("speculative", "draft_model", "prefix_cache_dir"):
        if getattr(options, name) != getattr(usual, name):
            raise RequestError(
                f"{name} was asked for, but the model is recurrent, and its state cannot go back "
                "to an earlier token; leave the option out"
            )


def embedding_limits(
    options: EngineOptions, manifest: Manifest, fitting_pages: int | None = None
) -> Limits:
    """The limits of an embedding model, whose cache holds one step's texts, or one long text."""
    sequences = options.max_num_sequence or manifest.model.max_batch_size
    own = replace(options, mode=Mode.INTERACTIVE, max_num_sequence=sequences)
    return plan(own, manifest, fitting_pages)


def _rows(manifest: Manifest) -> int:
    """The most logits that a step of any entry point gives; without entries, one a token."""
    bounds = [dim.hi for entry in manifest.entries for dim in entry.dims if dim.name == "r"]
    return max(bounds, default=manifest.model.prefill_chunk_size)


def _chunk(manifest: Manifest) -> int | None:
    """The tokens of a step that do best; an encoder's text is one step, however long."""
    on_processor = manifest.target.partition(":")[0] == KINDS[0]
    return _CHUNK if on_processor and manifest.model.pooling is None else None


def _within(name: str, asked: int | None, compiled: int, preferred: int | None = None) -> int:
    if asked is None:
        return compiled if preferred is None else min(preferred, compiled)
    if asked > compiled:
        raise RequestError(
            f"{name} is {asked}, the library was compiled for up to {compiled}; "
            "ask for less or compile the model again"
        )
    return asked


def _sequences(options: EngineOptions) -> int | None:
    return {Mode.LOCAL: _LOCAL_SEQUENCES, Mode.INTERACTIVE: 1, Mode.SERVER: None}[
        Mode(options.mode)
    ]


def _tokens(options: EngineOptions, sequences: int, window: int) -> int:
    if options.mode is Mode.SERVER:
        return sequences * window * (_SPARE_WINDOWS if options.prefix_cache else 1)
    if options.mode is Mode.INTERACTIVE or options.context_window_size is not None:
        return window
    return min(window, _LOCAL_TOKENS)


def _fit(options: EngineOptions, num_pages: int, fitting: int, page_size: int) -> int:
    """Fewer pages where the size was ours to choose; OutOfMemory where it was asked for."""
    if options.max_total_tokens is not None or fitting == 0:
        raise OutOfMemory(
            f"a KV cache for {num_pages * page_size} tokens was asked for, there is room for "
            f"{fitting * page_size}; lower max_total_tokens or free memory"
        )
    return fitting
