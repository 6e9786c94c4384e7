"""`sterna.Engine` and `sterna.Embedder`, which make what they lack.

In: a model as the user names it. Out: the engines of `sterna.engine`, which themselves compile
nothing. The compile wing is imported only where something may have to be made: a machine that runs
a converted model with its library never loads the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sterna.base.artifact import AdapterRoom
from sterna.base.errors import UsageError
from sterna.base.target import parse_target
from sterna.checkpoint.hub import resolve_adapter
from sterna.checkpoint.lora import Adapter, adapter_tensors, open_adapter, room_for
from sterna.checkpoint.mlc import CONFIG
from sterna.checkpoint.model_folder import open_model
from sterna.engine import embedder, engine
from sterna.engine.loader import Located, Resolve
from sterna.engine.null_model import NULL
from sterna.engine.options import EngineOptions, KVDtype, Mode
from sterna.found import identity, recall, remember
from sterna.runtime.devices import AUTO, automatic, library_in, parse_device
from sterna.runtime.library import read_manifest
from sterna.runtime.web_folder import is_web_folder, read_index

Progress = Callable[[str, str, int, int], None]


def locate(
    model: str | Path | None = None,
    model_lib: str | Path | None = None,
    device: str = "auto",
    *,
    quantization: str | None = None,
    kv_dtype: str = KVDtype.AUTO,
    lora: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Located:
    """What an engine loads; converts and compiles into the cache what is not there.

    `quantization` is for a source that is not converted yet, `kv_dtype` for a library that is not
    compiled yet; `lora` are adapters by name; `progress` is a `jit.Report`.
    """
    if device == NULL:
        given = (model_lib, quantization, lora or None)
        if model not in (None, NULL) or given != (None, None, None):
            raise UsageError(
                "the null device answers without a model; leave out the model, its library, "
                f"quantization and adapters, or write NAME={NULL} to give it a name on a server"
            )
        return Located.null()
    adapters = [open_adapter(resolve_adapter(folder)) for folder in (lora or {}).values()]
    if model_lib is None and model is not None and _holds_programs(Path(model), device):
        model_lib = model
    if quantization is None and model is not None and model_lib is not None:
        folder, library = Path(model).expanduser(), library_in(Path(model_lib).expanduser(), device)
        if (folder / CONFIG).is_file():
            found = Located(folder, library, open_model(folder).tensors, device)
            return _beside(found, lora or {}, adapters)
    if device == AUTO and model_lib is None:
        device, why = automatic()
        if progress is not None:
            progress("device", why, 0, 0)
    found = _made(model, model_lib, device, quantization, kv_dtype, room_for(adapters), progress)
    return _beside(found, lora or {}, adapters)


def _made(
    model: str | Path | None,
    model_lib: str | Path | None,
    device: str,
    quantization: str | None,
    kv_dtype: str,
    room: AdapterRoom | None,
    progress: Progress | None,
) -> Located:
    """What was found before, or the compile wing finds and makes."""
    asked: Any = None if kv_dtype == KVDtype.AUTO else str(kv_dtype)
    shape = (quantization, asked, None if room is None else repr(room))
    known = None if model_lib is not None else identity(model, device, shape)
    if known is not None and (before := recall(known)) is not None:
        return Located(*before, open_model(before[0]).tensors, device)
    from sterna import jit  # the compile wing, see above

    found = jit.locate(
        model,
        model_lib,
        device,
        quantization=quantization,
        kv_dtype=asked,
        adapters=room,
        progress=progress or jit.log,
    )
    if known is not None:
        remember(known, found.folder, found.library)
    return found


def _beside(found: Located, names: Mapping[str, str], adapters: Sequence[Adapter]) -> Located:
    """A model with adapters; a library may have room for more."""
    if not adapters:
        return found
    manifest = read_manifest(found.library)
    factors = adapter_tensors(adapters, manifest.adapters, manifest.params)
    return replace(found, weights={**found.weights, **factors}, adapters=tuple(names))


def _holds_programs(model: Path, device: str) -> bool:
    """Whether a model's folder, made for browsers, has programs for the device that was named."""
    folder, (kind, _) = model.expanduser(), parse_device(device)
    if kind == AUTO or not is_web_folder(folder):
        return False
    return kind in {parse_target(p.target).kind for p in read_index(folder).programs}


def _locate_for(options: EngineOptions | None) -> Resolve:
    chosen = options or EngineOptions()
    return partial(locate, kv_dtype=chosen.kv_dtype, lora=chosen.lora)


class Engine(engine.Engine):
    """Blocking. Without `model` the demo model; without `model_lib` one is compiled."""

    def __init__(
        self,
        model: str | Path | None = None,
        model_lib: str | Path | None = None,
        device: str = "auto",
        *,
        mode: Mode | str | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        resolve = _locate_for(options)
        super().__init__(model, model_lib, device, mode=mode, options=options, resolve=resolve)


class AsyncEngine(engine.AsyncEngine):
    """For event loops. Without `model` the demo model; without `model_lib` one is compiled."""

    def __init__(
        self,
        model: str | Path | None = None,
        model_lib: str | Path | None = None,
        device: str = "auto",
        *,
        mode: Mode | str | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        resolve = _locate_for(options)
        super().__init__(model, model_lib, device, mode=mode, options=options, resolve=resolve)


class Embedder(embedder.Embedder):
    """Texts to vectors. Without `model_lib` a library is compiled."""

    def __init__(
        self,
        model: str | Path,
        model_lib: str | Path | None = None,
        device: str = "auto",
        *,
        options: EngineOptions | None = None,
    ) -> None:
        resolve = _locate_for(options)
        super().__init__(model, model_lib, device, options=options, resolve=resolve)


MLCEngine = Engine
AsyncMLCEngine = AsyncEngine
