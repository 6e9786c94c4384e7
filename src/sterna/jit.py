"""Whatever the user calls a model, made ready to run: a model folder and a library for a target.

In: a Hugging Face folder, a GGUF file, a converted folder, `HF://user/repo`, or None for the demo
model. Out: both paths; what is missing is converted, configured and compiled into the cache, once.
Entries are found by all that shapes them: the source files, the scheme, the options, the target,
the C compiler and Sterna itself, so an upgrade never runs something stale.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from sterna import demo
from sterna.base.artifact import AdapterRoom, CompileOptions, KVDtype
from sterna.base.cache import cache_dir, key
from sterna.base.errors import UsageError
from sterna.base.target import Target, parse_target
from sterna.base.version import file_state, source_state
from sterna.checkpoint.config import read_errors
from sterna.checkpoint.hub import resolve, title
from sterna.checkpoint.mlc import CONFIG
from sterna.checkpoint.model_folder import open_model
from sterna.compiler import compile_model, library_key
from sterna.convert import (
    STORED,
    ConvertProgress,
    convert_weight,
    default_quantization,
    gen_config,
    source_folder,
)
from sterna.engine.loader import Located
from sterna.quantize.scheme import scheme
from sterna.runtime.devices import AUTO, library_in, target_of
from sterna.runtime.library import read_manifest
from sterna.tune.database import tuned_plans

# Called with (stage, detail, done, total); total 0: something to tell, not a share of the work.
Report = Callable[[str, str, int, int], None]

_LOG = logging.getLogger("sterna")
_DEMO = "sterna-demo"
_KEY_DIGITS = 16
_CONVERTING = ("base", "checkpoint", "quantize", "models", "nn", "convert", "convert.py")


def log(stage: str, detail: str, done: int, total: int) -> None:
    """Report to Python's logging, where there is no terminal to draw in."""
    if total == 0:
        _LOG.info("%s: %s", stage, detail)
    else:
        _LOG.debug("%s: %d of %d %s", stage, done, total, detail)


def locate(
    model: str | Path | None = None,
    model_lib: str | Path | None = None,
    device: str = AUTO,
    *,
    quantization: str | None = None,
    kv_dtype: KVDtype | None = None,
    adapters: AdapterRoom | None = None,
    progress: Report = log,
) -> Located:
    """What an engine loads. A library that is given says how to quantize a source.

    `adapters` is the room for them in a library that is not compiled yet.
    """
    if model_lib is None:
        options = CompileOptions(kv_dtype=kv_dtype, adapters=adapters)
        folder, library = ensure(
            model,
            target_of(device),
            quantization=quantization,
            options=options,
            progress=progress,
        )
    else:
        library = library_in(Path(model_lib).expanduser(), device)
        wanted = read_manifest(library).model.quantization
        folder = model_folder(model, quantization or wanted, progress)
    return Located(folder, library, open_model(folder).tensors, device)


def ensure(
    model: str | Path | None = None,
    target: str | Target = "cpu",
    *,
    quantization: str | None = None,
    options: CompileOptions | None = None,
    progress: Report = log,
) -> tuple[Path, Path]:
    """The model folder and the library of a model; both at once when they were made before.

    Raises UsageError for a model or target that is none, and what converting and compiling raise.
    """
    target = parse_target(target) if isinstance(target, str) else target
    folder = model_folder(model, quantization, progress)
    return folder, library(folder, target, options or CompileOptions(), progress)


def model_folder(
    model: str | Path | None, quantization: str | None = None, progress: Report = log
) -> Path:
    """The converted folder of a model: itself, or one in the cache."""
    source = demo.FOLDER if model is None else resolve(str(model))
    source = source_folder(source)
    if (source / CONFIG).is_file():
        found = open_model(source).quantization
        if quantization not in (None, STORED, found):
            raise UsageError(
                f"{source} is quantized as {found}, not as {quantization}; leave --quantization "
                "out, or convert the model's source again"
            )
        return source
    chosen = quantization or _quantization(model, source)
    if chosen != STORED:
        chosen = scheme(chosen).name
    name = f"{_name(model, source)}-{chosen}"
    folder = cache_dir("models") / f"{name}-{_source_key(source, chosen)}" / name
    if not _is_complete(folder):
        _convert(source, folder, chosen, progress)
        progress("convert", f"made {folder}", 0, 0)
    return folder


def library(folder: Path, target: Target, options: CompileOptions, progress: Report = log) -> Path:
    """The library of a converted folder, compiled into the cache unless it is there."""
    model = open_model(folder)
    ignored: list[str] = []
    tuned = tuned_plans(target, ignored.append)
    stem = _plain(f"{model.folder.name}-{target.spec.replace(':', '-')}")
    name = f"{stem}-{library_key(model, target, options, tuned)[:_KEY_DIGITS]}{target.suffix}"
    path = cache_dir("libraries") / name
    if not path.is_file():
        for text in ignored:
            progress("compile", text, 0, 0)
        compile_model(
            folder,
            target,
            path,
            options=options,
            cached=False,  # this path is the cache
            tuned=tuned,
            progress=lambda text: progress("compile", text, 0, 0),
        )
        progress("compile", f"made {path}", 0, 0)
    return path


def _quantization(model: str | Path | None, source: Path) -> str:
    return demo.QUANTIZATION if model is None else default_quantization(source)


def _convert(source: Path, folder: Path, quantization: str, progress: Report) -> None:
    def step(at: ConvertProgress) -> None:
        progress("convert", at.name, at.bytes_done, at.bytes_total)

    progress("convert", f"{source} to {quantization}", 0, 0)
    convert_weight(source, folder, quantization=quantization, progress=step)
    gen_config(source, folder, quantization=quantization)


def _is_complete(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / "tensor-cache.json").is_file()


def _name(model: str | Path | None, source: Path) -> str:
    """What people call the model; the hub's folders are named after commits."""
    if model is None:
        return _DEMO
    return _plain(title(str(model)) or source.resolve().name) or "model"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:80]


def _source_key(source: Path, quantization: str) -> str:
    with read_errors(source):
        files = sorted(path for path in source.iterdir() if path.is_file())
        state = [file_state(path, path.name) for path in files]
    where = os.fsencode(source.resolve())
    return key(where, *state, quantization, *source_state(*_CONVERTING))[:_KEY_DIGITS]
