"""The whole compiler, from a model folder to a library: each line is value = stage(value).

    folder    -> config and scheme             checkpoint
    config    -> model -> IRModule             models, nn
    IRModule  -> IRModule                      passes
    IRModule  -> Groups -> PrimFuncs -> C      schedule, codegen (for prefill, decode, verify)
    C         -> library                       codegen.toolchain

Weights are never read: a library is compiled from a model's configuration alone, and serves every
model of equal shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sterna import models
from sterna.base.artifact import (
    FORMAT,
    PREFILL_GIVEN,
    AdapterRoom,
    CompileOptions,
    Entry,
    Manifest,
    Param,
)
from sterna.base.artifact import KVCache as ManifestCache
from sterna.base.artifact import Model as ManifestModel
from sterna.base.cache import key, lookup, store, write_atomic
from sterna.base.dtype import DType
from sterna.base.errors import UsageError
from sterna.base.target import Target, targets_of
from sterna.base.version import __version__, source_state
from sterna.bounds import Sizes, attention_overrides, cache_dtype, cache_dtype_name, sizes_of
from sterna.checkpoint.model_folder import ModelFolder, open_model
from sterna.codegen.renderer import LibraryParts, Renderer, renderer_of
from sterna.ir.graph import IRModule
from sterna.ir.printer import to_text
from sterna.models.stored_scheme import stored_scheme
from sterna.nn.decoder import CausalLM, EmbeddingModel, Limits, trace_causal_lm
from sterna.passes.bound_params import bound_params
from sterna.passes.fuse import fuse
from sterna.passes.lower_opaque import Setting
from sterna.passes.pipeline import graph_passes, run
from sterna.passes.prepack import RowTile, prepack
from sterna.passes.products import count_of_codes, count_of_floats, factors_of
from sterna.passes.specialize import specialize
from sterna.program import (
    STEP_DIMS,
    EntryPoint,
    KernelTable,
    build_chooser,
    build_entry,
    build_sampler,
    self_contained,
)
from sterna.schedule.choose import Plan, plan_of, streams_of
from sterna.sight import see_entry, sight_of

DECODE_TOKENS = 2  # most tokens of a decode step: more sequences are a verify step
VERIFY_TOKENS = 32  # most tokens of a verify step, and most logit rows of any step

# Whose files shape a library; see library_key.
_ROOMS = (
    *("base", "ir", "ops", "nn", "schedule", "codegen", "quantize", "kernels", "models"),
    *("passes", "checkpoint", "compiler.py", "bounds.py", "program.py", "sight.py"),
)
ENTRIES = ("prefill", "decode", "verify")
EMBED = "embed"  # the only one of an embedding model

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Everything a library is made of, before an outside compiler sees it."""

    manifest: Manifest
    parts: LibraryParts
    table: KernelTable
    entries: tuple[EntryPoint, ...]
    products: Mapping[int, int]  # of codes, by the bits of their activations
    of_floats: tuple[int, int]  # products of floats of 16 bits, and those that stay in f32

    @property
    def tuned(self) -> int:
        """How many kernels have a measured plan that is not the rules' own."""
        if not self.table.tuned:
            return 0
        scheduled = {k: g for e in self.entries for k, g in e.scheduled.items()}
        own = self.table.target
        return sum(self.table.plan(g) != plan_of(g, own) for g in scheduled.values())

    @property
    def text(self) -> str:
        """The library's source."""
        return renderer_of(self.table.target).library_source(self.parts)


def compile_model(
    folder: Path,
    target: Target,
    output: Path,
    *,
    options: CompileOptions | None = None,
    debug_dump: Path | None = None,
    cached: bool = True,
    tuned: Mapping[str, Plan] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile the model in `folder` for `target` into the library `output`, atomically.

    `debug_dump` names a folder for the module after every phase, the kernels' schedules and the
    C source. A library that was made before from the same inputs by the same Sterna is copied
    from the cache, unless a dump is asked for or `cached` is false. `tuned` are measured plans by
    the digest of the Group they are for; see `KernelTable`. Raises CheckpointError, CompileError
    and their kin.
    """
    say = progress or str  # nobody asked
    opened = open_model(folder, weights=False)
    options = options or CompileOptions()
    identity = library_key(opened, target, options, tuned)
    found = lookup("libraries", identity) if cached and debug_dump is None else None
    if found is not None:
        say(f"found {output.name} in the cache")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, found)
        return output
    say(f"compiling {opened.model_type} {opened.quantization} for {target.spec}")
    renderer, sources = renderer_of(target), list[Source]()
    for own in targets_of(target):
        dump = _dump_of(own, target, debug_dump)
        sources.append(compile_source(opened, own, options, dump, tuned))
        dump.kernels(sources[-1], renderer)
    if options.activations == "i8" and (wider := sources[0].products[16]):
        say(f"{wider} of {sum(sources[0].products.values())} products keep activations of 16 bits")
    if left := sources[0].of_floats[1]:
        say(f"{left} of {sum(sources[0].of_floats)} products keep activations in f32")
    count, changed = sum(len(s.table.kernels) for s in sources), sum(s.tuned for s in sources)
    say(f"{count} kernels, {changed} of them tuned; making {output.name}")
    built = renderer.build_library([s.parts for s in sources], target)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, built)
    if cached:
        store("libraries", identity, built)
    return output


def library_key(
    folder: ModelFolder,
    target: Target,
    options: CompileOptions,
    tuned: Mapping[str, Plan] | None = None,
) -> str:
    """A hash of all that shapes a library: model, options, target, toolchain, Sterna itself."""
    return key(
        folder.fingerprint,
        repr(sorted(folder.config.items())),
        repr(sorted(folder.chat_config.items())),
        folder.quantization,
        repr(target),
        repr(options),
        repr(sorted((tuned or {}).items())),
        renderer_of(target).build_version(target),
        *source_state(*_ROOMS),
    )


def compile_source(
    folder: ModelFolder,
    target: Target,
    options: CompileOptions,
    dump: _Dump | None = None,
    tuned: Mapping[str, Plan] | None = None,
) -> Source:
    """The front end: all but the building of the artifact."""
    dump = dump or _Dump(None)
    quantization = stored_scheme(folder)
    config = folder.config | attention_overrides(options)
    sizes = sizes_of(folder, config, options)
    model = models.build(config, quantization, sizes.context)
    dtype = cache_dtype(target, options, model.cache)
    model.cache = model.cache.kept_in(dtype, sizes.context)
    module = trace_causal_lm(model, _limits(model, sizes))
    factors = factors_of(options.activations, target, folder.quantization, quantization.compute)
    passes = graph_passes(
        models.family(config).FUSED,
        code_bits=factors.code_bits,
        floats=factors.floats,
        paired=factors.paired,
        adapters=_adapters(options, model, quantization.compute),
        most_buffers=target.most_buffers or None,
    )
    module = run(module, passes, dump.phase)
    products = count_of_codes(module, options.activations, folder.quantization)
    of_floats = count_of_floats(module, factors, folder.quantization)
    streams = streams_of(target)
    tiles = prepack(module, streams)
    near_rows = not target.group_threads
    module = fuse(module, near_rows=near_rows)
    dump.phase("06_fuse", to_text(module))
    table = KernelTable(target, tuned or {})
    embeds = isinstance(model, EmbeddingModel)
    titles = (EMBED,) if embeds else ENTRIES
    entries = tuple(_entry(title, module, tiles, model, sizes, table) for title in titles)
    params, constants = bound_params(module, tiles), module.constants
    if (sight := sight_of(model)) is not None:
        shown = run(trace_causal_lm(model, _limits(model, sizes), given=True), passes)
        shown_tiles = prepack(shown, streams)
        entries += (
            _entry(
                PREFILL_GIVEN, fuse(shown, near_rows=near_rows), shown_tiles, model, sizes, table
            ),
        )
        fused = models.family(config).FUSED
        seen = see_entry(sight, fused, model.cache.page_size, sizes.context, table)
        entries, params = (*entries, seen.entry), (*params, *seen.params)
        constants = {**constants, **seen.constants}
    sampler = None if embeds else _sampler(target, sizes, table)
    manifest = _manifest(folder, target, params, model, sizes, table, entries, sampler)
    vision = None if sight is None else sight.told(sizes.context)
    manifest = msgspec.structs.replace(
        manifest, adapters=options.adapters, vision=vision, options=options
    )
    parts = LibraryParts(manifest, table.code(), constants)
    return Source(manifest, parts, table, entries, products, of_floats)


def _adapters(
    options: CompileOptions, model: CausalLM, compute: DType
) -> tuple[AdapterRoom, DType] | None:
    """The room for adapters, whose factors are kept in what the scheme computes in."""
    if options.adapters is None:
        return None
    if isinstance(model, EmbeddingModel):
        raise UsageError("adapters go with models that write text; this one makes embeddings")
    return options.adapters, compute


def _sampler(target: Target, sizes: Sizes, table: KernelTable) -> Entry:
    """Tokens are chosen where the logits are."""
    rows = max(VERIFY_TOKENS, sizes.batch)
    build = build_sampler if target.integers64 else build_chooser
    return build(sizes.vocabulary, rows, table)


def _entry(
    title: str,
    module: IRModule,
    tiles: dict[str, RowTile],
    model: CausalLM,
    sizes: Sizes,
    table: KernelTable,
) -> EntryPoint:
    tokens = {
        "prefill": sizes.chunk,
        "decode": min(sizes.batch, DECODE_TOKENS),
        "verify": VERIFY_TOKENS,
        EMBED: sizes.chunk,
        PREFILL_GIVEN: sizes.chunk,
    }[title]
    # Any pooling is possible: the states of all tokens may be asked for.
    rows = tokens if title == EMBED else min(tokens, max(VERIFY_TOKENS, sizes.batch))
    special = specialize(module, {"n": tokens, "r": rows, "t": tokens})
    dims = tuple(d for d in special.dims if d.name in STEP_DIMS)
    few = title == "decode"
    setting = Setting.of(table.target, dims, model.cache.page_size, sizes.context, split=few)
    output = "states" if title == EMBED else "logits"
    return build_entry(title, special, tiles, setting, table, output, module)


def _limits(model: CausalLM, sizes: Sizes) -> Limits:
    pages = -(-sizes.context // model.cache.page_size)
    return Limits(sizes.chunk, sizes.batch, pages * sizes.batch)


def _manifest(
    folder: ModelFolder,
    target: Target,
    params: tuple[Param, ...],
    model: CausalLM,
    sizes: Sizes,
    table: KernelTable,
    entries: tuple[EntryPoint, ...],
    sampler: Entry | None,
) -> Manifest:
    cache = model.cache
    return Manifest(
        format=FORMAT,
        sterna=__version__,
        target=target.spec,
        features=target.features,
        model=ManifestModel(
            model_type=folder.model_type,
            quantization=folder.quantization,
            fingerprint=folder.fingerprint,
            vocab_size=sizes.vocabulary,
            context_window_size=sizes.context,
            prefill_chunk_size=sizes.chunk,
            max_batch_size=sizes.batch,
            sliding_window_size=sizes.window,
            attention_sink_size=sizes.sinks,
            pooling=sizes.pooling,
            normalize=sizes.normalize,
            causal=sizes.causal,
        ),
        kv_cache=ManifestCache(
            layers=cache.layers,
            kv_heads=cache.kv_heads,
            head_dim=cache.head_dim,
            page_size=cache.page_size,
            dtype=cache_dtype_name(cache.dtype),
            page_bytes=cache.page_bytes,
            recurrent=cache.recurrent,
        ),
        states=None if cache.states is None else cache.states.told(sizes.batch),
        params=params,
        entries=tuple(e.entry for e in entries),
        kernels=table.manifest(),
        sampler=sampler,
        part_bytes=target.most_buffer_bytes if target.split_buffers else 0,
    )


def _dump_of(own: Target, target: Target, folder: Path | None) -> _Dump:
    """The dump of one program, in a folder of its own where the library carries several."""
    name = own.spec.replace(":", "-") if target.carried else ""
    return _Dump(folder and folder / name)


class _Dump:
    """Texts of every phase in a folder, or nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def phase(self, title: str, text: str) -> None:
        if self.folder is not None:
            (self.folder / f"{title}.txt").write_text(text + "\n", encoding="utf-8")

    def kernels(self, source: Source, renderer: Renderer) -> None:
        """Groups, schedules, loop programs, and the source of the whole library."""
        if self.folder is None:
            return
        for e in source.entries:
            self.phase(f"07_{e.entry.name}_groups", "\n\n".join(e.groups.values()))
        table = source.table.kernels.items()
        self.phase("08_schedules", "\n\n".join(f"# {n}\n{k.schedule}" for n, k in table))
        self.phase("09_loops", "\n\n".join(to_text(self_contained(k.func)) for _, k in table))
        (self.folder / f"10_library{renderer.source_suffix}").write_text(
            source.text, encoding="utf-8"
        )
