"""A model folder and its compiled library to the parts of an engine.

Finding them, compiling a missing library and opening the weights is the business of the caller's
`resolve`: that needs the compile wing, which this room does not import.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sterna.base.artifact import Manifest
from sterna.base.cache import cache_dir, key
from sterna.base.errors import ArtifactError, RequestError, UsageError
from sterna.base.version import file_state
from sterna.engine.chat_config import ChatConfig, check_library, read_chat_config
from sterna.engine.draft_model import DraftModel
from sterna.engine.fingerprint import system_fingerprint
from sterna.engine.grid_reader import GridReader
from sterna.engine.image_reader import ImageReader
from sterna.engine.limits import Limits, draft_limits, embedding_limits, plan
from sterna.engine.null_model import NULL, null_manifest, null_parts
from sterna.engine.options import EngineOptions, KVDtype, Mode
from sterna.engine.parts import Parts
from sterna.runtime.devices import DeviceModule, choose_device, parse_device
from sterna.runtime.executable import Executable
from sterna.runtime.host import give_back_memory, usable_cores
from sterna.runtime.library import read_manifest
from sterna.runtime.memory import memory_plan, pages_that_fit
from sterna.runtime.packed import layout, worth_keeping
from sterna.runtime.params import WeightReader
from sterna.text.chat_template import ChatTemplate
from sterna.text.parts_template import readable
from sterna.text.tokenizer import Tokenizer

_LOG = logging.getLogger("sterna")
# Options of what only a model that writes text does.
_GENERATING = ("draft_model", "draft_tokens", "speculative", "prefix_cache_dir", "lora", "trace")
_MEMORY_SHARE = 0.9  # of what is free, unless options say how much; the rest is for the process


@dataclass(frozen=True, slots=True)
class Located:
    """A converted model's folder, a library compiled for it, and its tensors, not yet read.

    On the null device there are none of these.
    The factors of `adapters` are among the tensors; their numbers are their places in the tuple.
    """

    folder: Path
    library: Path
    weights: Mapping[str, WeightReader]
    device: str = "auto"
    adapters: tuple[str, ...] = ()

    @classmethod
    def null(cls) -> Located:
        """What stands for a model on the null device."""
        return cls(Path(NULL), Path(NULL), {}, NULL)

    def manifest(self) -> Manifest:
        return null_manifest() if self.device == NULL else read_manifest(self.library)


# (model, model_lib, device) as the user gave them; None: the resolver finds or makes one
Resolve = Callable[[str | Path | None, str | Path | None, str], Located]


def load(located: Located, options: EngineOptions, draft: Located | None = None) -> Parts:
    """Check that folder and library belong together, then load both.

    Memory is left for `draft`, which `load_draft` loads. ArtifactError when folder and library
    differ, TokenizerError, OutOfMemory, and what the device raises.
    """
    if located.device == NULL:
        return null_parts(options)
    config, manifest = _checked(located, options)
    if manifest.model.pooling is not None:
        raise RequestError(
            f"the model {located.folder.name} makes embeddings and writes no text; serve it for "
            "/v1/embeddings, or load it as sterna.Embedder"
        )
    device, index = choose_device(located.device, manifest)
    guesser = None if draft is None else read_manifest(draft.library)
    memory = _memory(options, device.available_memory(index))
    limits = plan(options, manifest, _fitting_pages(manifest, memory, options, guesser))
    # First the weights: pages that are mapped get into memory while the vocabulary is read.
    executable = _load_on(device, index, located, manifest, limits.num_pages, options)
    with ExitStack() as undo:
        undo.callback(executable.close)
        tokenizer = Tokenizer.load(located.folder, _kept_tokens(options))
        template = readable(ChatTemplate.load(located.folder))
        give_back_memory()  # reading a large vocabulary takes more than the vocabulary
        parts = Parts(
            executable=executable,
            limits=limits,
            tokenizer=tokenizer,
            template=template,
            model_name=located.folder.resolve().name,
            defaults=config.defaults,
            stop_ids=config.stop_ids | frozenset(tokenizer.eos_ids),
            stop_strings=config.stop_strings,
            conv_template=config.conv_template,
            fingerprint=system_fingerprint(identity(located)),
            adapters={name: number for number, name in enumerate(located.adapters)},
            images=_image_reader(located.folder, manifest),
        )
        undo.pop_all()
    return parts


def _image_reader(folder: Path, manifest: Manifest) -> ImageReader | GridReader | None:
    vision = manifest.vision
    if vision is None:
        return None
    return GridReader.load(folder, vision) if vision.merge else ImageReader.load(folder, vision)


def embeds(located: Located) -> bool:
    """Whether the model makes embeddings, so that `load_embedding_model` loads it."""
    return located.manifest().model.pooling is not None


def without_generating(options: EngineOptions) -> EngineOptions:
    """The same but for what only a model that writes text does: for those beside it."""
    usual = EngineOptions()
    return replace(options, **{name: getattr(usual, name) for name in _GENERATING})


def load_embedding_model(
    located: Located, options: EngineOptions
) -> tuple[Executable, Limits, Tokenizer]:
    """As `load`, for a model that makes embeddings.

    RequestError for one that writes text, and for options that only such models have.
    """
    if not embeds(located):
        raise RequestError(
            f"the model {located.folder.name} writes text and makes no embeddings; choose an "
            "embedding model"
        )
    _, manifest = _checked(located, options)
    usual = without_generating(options)
    if given := [name for name in _GENERATING if getattr(options, name) != getattr(usual, name)]:
        raise RequestError(
            f"{given[0]} belongs to models that write text; {located.folder.name} makes embeddings"
        )
    tokenizer = Tokenizer.load(located.folder)
    device, index = choose_device(located.device, manifest)
    memory = _memory(options, device.available_memory(index))
    fitting = _fitting_pages(manifest, memory, options, None)
    limits = embedding_limits(options, manifest, fitting)
    return _load_on(device, index, located, manifest, limits.num_pages, options), limits, tokenizer


def _checked(located: Located, options: EngineOptions) -> tuple[ChatConfig, Manifest]:
    """What folder and library say of themselves; ArtifactError where they do not match."""
    config = read_chat_config(located.folder)
    manifest = read_manifest(located.library)
    check_library(config, manifest, located.folder, located.library)
    _check_kv_dtype(options, manifest, located.library)
    return config, manifest


def share_memory(models: Sequence[Located], options: EngineOptions) -> list[EngineOptions]:
    """The options of each of several models that run side by side: none takes what others need.

    Each gets what it needs at least, and models on one device share the rest of its memory evenly.
    """
    if len(models) < 2 or models[0].device == NULL:
        return [options] * len(models)
    threads = options.threads or usable_cores()
    manifests = [read_manifest(model.library) for model in models]
    least = [memory_plan(manifest, 1, threads).total for manifest in manifests]
    places = [
        choose_device(model.device, manifest)
        for model, manifest in zip(models, manifests, strict=True)
    ]
    shared: list[EngineOptions] = []
    for place, need in zip(places, least, strict=True):
        device, index = place
        memory = _memory(options, device.available_memory(index))
        if memory is not None:
            beside = [n for p, n in zip(places, least, strict=True) if p == place]
            rest = max(0, memory - sum(beside)) // len(beside)
            shared.append(replace(options, memory=need + rest))
        else:
            shared.append(options)
    return shared


def _memory(options: EngineOptions, free: int | None) -> int | None:
    """Bytes that may be taken; None where neither the user nor the device says."""
    if options.memory is not None or free is None:
        return options.memory
    return int(free * _MEMORY_SHARE)


def _check_kv_dtype(options: EngineOptions, manifest: Manifest, library: Path) -> None:
    found = manifest.kv_cache.dtype
    if options.kv_dtype not in (KVDtype.AUTO, found):
        raise ArtifactError(
            f"kv_dtype {options.kv_dtype} was asked for, but {library} keeps its KV cache in "
            f"{found}; compile the model with --kv-dtype {options.kv_dtype}, or leave it out"
        )


def check_device(device: str) -> None:
    """Unavailable for a device that this Sterna cannot run on, or that is not here."""
    if device != NULL:
        parse_device(device)


def _load_on(
    device: DeviceModule,
    index: int,
    located: Located,
    manifest: Manifest,
    num_pages: int,
    options: EngineOptions,
) -> Executable:
    return device.load(
        located.library,
        located.weights,
        num_pages=num_pages,
        threads=options.threads,
        index=index,
        packed=packed_file(located, manifest, options),
    )


def packed_file(located: Located, manifest: Manifest, options: EngineOptions) -> Path | None:
    """Where the cache keeps these weights as this library reads them."""
    if not options.keep_packed or not worth_keeping(manifest):
        return None
    try:
        folder = cache_dir("weights")
    except UsageError as error:
        _LOG.warning("packed weights are not kept: %s", error)
        return None
    shards = sorted(located.folder.glob("params_shard_*.bin"))
    files = [file_state(path, path.name) for path in shards]
    name = key(layout(manifest), str(located.folder.resolve()), _listed(located), *files)
    return folder / f"{located.folder.resolve().name[:80]}-{name[:16]}.bin"


def _kept_tokens(options: EngineOptions) -> Path | None:
    """Where the cache keeps large vocabularies; a server has all of its own from the start."""
    if not options.keep_packed or options.mode == Mode.SERVER:
        return None
    try:
        return cache_dir("tokens")
    except UsageError as error:
        _LOG.warning("tokens are not kept: %s", error)
        return None


def _listed(located: Located) -> bytes:
    """The list of the weights, with a checksum of each file."""
    weights = located.folder / "tensor-cache.json"
    return weights.read_bytes() if weights.is_file() else b""


def identity(located: Located) -> str:
    """What decides the keys and values of a prompt: the library, and the list of the weights.

    The list has a checksum of every file of weights.
    """
    if located.device == NULL:
        return NULL
    library = hashlib.sha256(located.library.read_bytes()).hexdigest()
    return f"{library} {hashlib.sha256(_listed(located)).hexdigest()}"


def load_draft(located: Located, options: EngineOptions, parts: Parts) -> DraftModel:
    """The draft model of an engine made of `parts`.

    RequestError unless it has the same vocabulary; else as `load`.
    """
    config = read_chat_config(located.folder)
    manifest = read_manifest(located.library)
    check_library(config, manifest, located.folder, located.library)
    _check_vocabulary(located.folder, parts.tokenizer)
    own = parts.limits
    tokens = own.num_pages * own.page_size
    limits = draft_limits(own, manifest, -(-tokens // manifest.kv_cache.page_size))
    device, index = choose_device(located.device, manifest)
    executable = _load_on(device, index, located, manifest, limits.num_pages, options)
    return DraftModel(executable, limits, parts.vocabulary)


def _check_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    draft = Tokenizer.load(folder)
    sizes = draft.vocab_size, tokenizer.vocab_size
    for token in range(max(sizes)):
        ours, theirs = tokenizer.id_to_token(token), draft.id_to_token(token)
        if ours != theirs:
            raise RequestError(
                f"the draft model in {folder} has another vocabulary: token {token} is {theirs!r} "
                f"there and {ours!r} in the model; choose a draft model of the same family"
            )


def _fitting_pages(
    manifest: Manifest, memory: int | None, options: EngineOptions, draft: Manifest | None
) -> int | None:
    """Pages for which there is memory, with as many tokens in the draft model's cache."""
    if memory is None:
        return None
    threads = options.threads or usable_cores()
    if draft is None:
        return pages_that_fit(manifest, threads, memory)
    memory -= memory_plan(draft, 1, threads).total
    own = manifest.kv_cache
    token_bytes = own.bytes_per_token + draft.kv_cache.bytes_per_token
    return pages_that_fit(manifest, threads, memory) * own.bytes_per_token // token_bytes
