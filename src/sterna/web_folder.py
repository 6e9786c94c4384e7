"""A folder that browsers fetch: a model folder, its programs, and an index of both with hashes.

In: a converted model and a target whose programs run in browsers. Out: the folder, whole or not at
all. It stays a converted model, which other programs read as before; the weights are not written
anew. See `base/web.py` for the index and `runtime/web_folder.py` for its reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import structs

from sterna import models
from sterna.base.artifact import CompileOptions, Entry, Manifest
from sterna.base.dtype import dtype
from sterna.base.errors import UsageError
from sterna.base.target import Target, parse_target
from sterna.base.version import __version__
from sterna.base.web import (
    FORMAT,
    INDEX,
    File,
    Memory,
    Program,
    Tensor,
    WebIndex,
    Weights,
    encode,
)
from sterna.checkpoint.beside import PartialFolder, carry_over, disk_errors, write_file
from sterna.checkpoint.mlc import is_model_file
from sterna.checkpoint.model_folder import ModelFolder, open_model
from sterna.checkpoint.tensor import TensorRef
from sterna.compiler import Progress, compile_model
from sterna.runtime.library import read_manifest
from sterna.runtime.memory import io_bytes, largest_shape, memory_plan, packed_bytes
from sterna.runtime.web_folder import is_web_folder, read_index
from sterna.schedule.choose import Plan

_BINDABLE = 256  # bytes: where every WebGPU device can bind


def compile_folder(
    model: Path,
    target: Target,
    output: Path,
    *,
    options: CompileOptions | None = None,
    debug_dump: Path | None = None,
    tuned: Mapping[str, Plan] | None = None,
    progress: Progress | None = None,
) -> WebIndex:
    """Write the folder `output` of a converted model, atomically; its index.

    UsageError for a target without such programs, and for a folder that holds other things; else
    as `compile_model`.
    """
    specs = packaged(target, output)
    opened = open_model(model)
    _check_output(opened.folder, output)
    _refuse_what_browsers_do_not(opened)
    names = sorted(path.name for path in opened.folder.iterdir() if is_model_file(path.name))
    with TemporaryDirectory() as made, disk_errors(output):
        partial = PartialFolder(output)
        try:
            for name in names:
                write_file(partial.path / name, opened.folder / name)
            programs = []
            for own in map(parse_target, specs):
                library = Path(made) / program_name(own)
                dump = debug_dump and debug_dump / library.stem
                compile_model(
                    model, own, library, options=options, debug_dump=dump, tuned=tuned,
                    progress=progress,
                )  # fmt: skip
                write_file(partial.path / library.name, library)
                programs.append((own, library.name, read_manifest(library)))
            index = _index(partial.path, tuple(opened.tensors.values()), programs)
            write_file(partial.path / INDEX, encode(index))
            if is_web_folder(output):
                old = {INDEX, *(f.name for f in read_index(output).files)}
                carry_over(output, partial.path, old.__contains__)
            partial.swap_in()
        except BaseException:
            partial.discard()
            raise
    return index


def _refuse_what_browsers_do_not(model: ModelFolder) -> None:
    config = models.family(model.config).read_config(model.config)
    if config.recurrent:
        raise UsageError(
            f"{model.model_type} models are recurrent, which the package for browsers does not "
            "take; serve this model with `sterna serve`, or choose one with attention"
        )
    if config.vision is not None:
        raise UsageError(
            f"{model.model_type} models take images, which the package for browsers does not; "
            "serve this model with `sterna serve`, or choose one of text alone"
        )


def packaged(target: Target, output: Path) -> tuple[str, ...]:
    """The targets of a folder's programs; UsageError where there are none."""
    if not target.packaged:
        raise UsageError(
            f"--output {output} is a folder, and {target.spec} makes a library; name the library "
            "to write"
        )
    return target.packaged


def program_name(target: Target) -> str:
    """What the program of a target is called in the folder."""
    return target.spec.replace(":", "-") + target.suffix


def _check_output(model: Path, output: Path) -> None:
    """Refuse to replace what is no such folder."""
    if output.resolve() == model:
        raise UsageError(f"--output {output} is the model itself; give a new or empty folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"--output {output} is a file; give a new or empty folder")
    if not is_web_folder(output) and (names := sorted(p.name for p in output.iterdir())):
        raise UsageError(
            f"--output {output} holds other things ({', '.join(names[:3])}); give a new or empty "
            "folder"
        )


def _index(
    folder: Path,
    tensors: Sequence[TensorRef],
    programs: Sequence[tuple[Target, str, Manifest]],
) -> WebIndex:
    return WebIndex(
        format=FORMAT,
        sterna=__version__,
        model=programs[0][2].model,
        files=tuple(_file(path) for path in sorted(folder.iterdir())),
        weights=Weights(tensors=tuple(map(_tensor, tensors))),
        programs=tuple(_program(*made) for made in programs),
    )


def _file(path: Path) -> File:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name=path.name, size=path.stat().st_size, sha256=digest)


def _tensor(ref: TensorRef) -> Tensor:
    return Tensor(
        name=ref.name,
        dtype=ref.dtype.name,
        shape=ref.shape,
        file=ref.path.name,
        offset=ref.offset,
        size=ref.nbytes,
        encoding=ref.encoding,  # type: ignore[arg-type]
    )


def _program(target: Target, file: str, manifest: Manifest) -> Program:
    cache = manifest.kv_cache
    pages = ceil(manifest.model.context_window_size / cache.page_size)
    own = alone(manifest)
    plan = memory_plan(own, pages, 1)
    return Program(
        file=file,
        target=target.spec,
        features=manifest.features,
        barriers=target.barriers,
        limits=_limits(own, pages * cache.page_bytes),
        memory=Memory(weights=plan.weights, kv_cache=plan.kv_cache, arena=plan.arena, io=plan.io),
    )


def alone(manifest: Manifest) -> Manifest:
    """The program as browsers run it: one sequence, and logits of one of its tokens.

    What the sampler keeps between its launches lies as close as that allows; nothing of it shares
    a place. See `alone` in web/src/alone.ts.
    """
    sampler = manifest.sampler and _bounded(manifest.sampler)
    if sampler is not None:
        arena, end = [], 0
        for buffer in sampler.arena:
            arena.append(structs.replace(buffer, offset=end))
            size = prod(largest_shape(buffer, sampler)) * dtype(buffer.dtype).bytes
            end += ceil(size / _BINDABLE) * _BINDABLE
        sampler = structs.replace(sampler, arena=tuple(arena), arena_bytes=end)
    entries = tuple(map(_bounded, manifest.entries))
    return structs.replace(manifest, entries=entries, sampler=sampler)


def _bounded(entry: Entry) -> Entry:
    one = {"b": 1, "r": 1}
    dims = (structs.replace(d, hi=min(d.hi, one.get(d.name, d.hi))) for d in entry.dims)
    return structs.replace(entry, dims=tuple(dims))


def _limits(manifest: Manifest, cache: int) -> dict[str, int]:
    """What the program takes of each limit that browsers name."""
    phases = [phase for kernel in manifest.kernels for phase in kernel.phases]
    weights = [packed_bytes(p) for p in manifest.params]
    bound = [min(size, manifest.part_bytes or size) for size in weights]
    bound += [prod(c.shape) * dtype(c.dtype).bytes for c in manifest.constants]
    bound += [cache, *io_bytes(manifest.launched).values()]
    bound += [entry.arena_bytes for entry in manifest.launched]
    largest = max(bound)
    return {
        "maxStorageBuffersPerShaderStage": max(len(p.buffers) for p in phases),
        "maxComputeWorkgroupStorageSize": max(p.shared_bytes for p in phases),
        "maxComputeInvocationsPerWorkgroup": max(p.threads for p in phases),
        "maxComputeWorkgroupSizeX": max(p.threads for p in phases),
        "maxStorageBufferBindingSize": largest,
        "maxBufferSize": max(largest, *weights),
    }
