"""The CPU as a device: a library and a side stream of weights become an Executable.

Everything is allocated once, at load. A step fills the inputs and calls one C function; all the
kernels of the step, their loops over layers and their threads are behind that call. Knows the
calling convention (ABI 1 of codegen/pool.h) and the manifest, nothing of graphs or kernels:

    i32 entry(Pool *pool, void *const *buffers, void *arena, const i64 *dims)

`buffers` are the entry's inputs, its outputs, the KV cache, then one pointer a param, in the
manifest's order; `dims` are the values of the entry's dims. The cache is [num_pages, page_bytes]:
a page's keys and values in all layers lie together.
"""

from __future__ import annotations

import _ctypes
import ctypes
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import ABI, MANIFEST_MARK, SEE, Entry, Manifest, decode
from sterna.base.errors import (
    ArtifactError,
    DeviceError,
    RequestError,
    Unavailable,
    UsageError,
)
from sterna.runtime import host
from sterna.runtime.batch import Prepared, choose, prepare
from sterna.runtime.cpu_report import cpu_report
from sterna.runtime.cpu_sampler import CpuSampler
from sterna.runtime.executable import Floats, Grid, Ints, StepInput
from sterna.runtime.library import check_loadable, manifest_bytes
from sterna.runtime.memory import (
    SLACK,
    Region,
    check_fits,
    io_bytes,
    largest_shape,
    memory_plan,
    packed_bytes,
    padded,
)
from sterna.runtime.packed import packed_params
from sterna.runtime.params import WeightReader, check_names, read_param
from sterna.runtime.report import DeviceReport
from sterna.runtime.sampling import SampleInput, check_sample, is_frozen, sample_rows
from sterna.runtime.sight import prepare_sight
from sterna.runtime.threads import POOL_BYTES, Team

_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class _Call:
    """One entry point, ready to be called: its arrays and the addresses that C takes."""

    entry: Entry
    function: Any  # of ctypes: i32(pool, buffers, arena, dims)
    inputs: tuple[tuple[str, NDArray[np.int32]], ...]
    result: NDArray[np.float32]  # [rows at most, width]
    dims: NDArray[np.int64]
    pointers: NDArray[np.uint64]  # kept alive: C reads it
    addresses: tuple[int, int, int, int]


def load(
    library: Path,
    weights: Mapping[str, WeightReader],
    *,
    num_pages: int,
    threads: int | None = None,
    index: int = 0,
    packed: Path | None = None,
) -> CpuExecutable:
    """Load a compiled library with its weights, one tensor at a time, or from the file `packed`.

    `threads` None: one for each processor this process may use. Raises ArtifactError for a
    library that is damaged or for another machine, Unavailable for one that wants a newer CPU,
    OutOfMemory before anything is allocated, MissingTensor and ShapeMismatch for weights that
    are not those the library was compiled for.
    """
    _check_index(index)
    data = manifest_bytes(library)
    manifest = decode(data)
    check_loadable(library, manifest)
    check_names(manifest)
    count = host.usable_cores() if threads is None else threads
    if not 1 <= count <= _MOST_THREADS:
        raise UsageError(f"{count} threads were asked for; possible: 1 to {_MOST_THREADS}")
    if num_pages < 1:
        raise UsageError(f"a KV cache of {num_pages} pages was asked for; it needs one at least")
    check_fits(memory_plan(manifest, num_pages, count), available_memory())
    handle = _open(library, data)
    try:
        mapped = packed_params(manifest, weights, packed)
        return CpuExecutable(handle, manifest, weights, num_pages, count, mapped)
    except BaseException:
        _unload(handle)  # or the same path, compiled again, would give the old library
        raise


def available_memory(index: int = 0) -> int | None:
    """See DeviceModule."""
    _check_index(index)
    return host.available_memory()


def reports() -> list[DeviceReport]:
    """See DeviceModule."""
    return [cpu_report()]


def _check_index(index: int) -> None:
    if index != 0:
        raise Unavailable(f"device cpu:{index} was asked for; there is one CPU, number 0")


class CpuExecutable:
    """An Executable on the CPU; made by `load`. One step at a time, from any thread."""

    def __init__(
        self,
        handle: ctypes.CDLL,
        manifest: Manifest,
        weights: Mapping[str, WeightReader],
        num_pages: int,
        threads: int,
        mapped: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> None:
        plan = memory_plan(manifest, num_pages, threads)
        page_bytes = manifest.kv_cache.page_bytes
        mapped = mapped or {}
        own = sum(padded(packed_bytes(p)) for p in manifest.params if p.name not in mapped)
        large = Region(own + plan.kv_cache + plan.arena + plan.scratch)
        small = Region(plan.io + padded(POOL_BYTES))  # lives on while logits are in use
        pool = small.take(POOL_BYTES)
        io = {name: small.take(size) for name, size in io_bytes(manifest.entries).items()}
        scratch, arena = large.take(plan.scratch - SLACK), large.take(plan.arena - SLACK)
        self._cache = large.take(num_pages * page_bytes).reshape(num_pages, page_bytes)
        params = _load_params(manifest, weights, large, mapped)
        self._params = params  # kept alive: C reads them
        shared = [self._cache.ctypes.data, *(param.ctypes.data for param in params)]
        ends = (pool.ctypes.data, arena.ctypes.data)
        self._calls = {
            entry.name: _prepare_call(entry, handle, io, shared, ends) for entry in manifest.entries
        }
        self._entries = {entry.name: entry for entry in manifest.entries}
        self._logits = np.zeros((0, manifest.model.vocab_size), np.float32)  # of the last step
        self._checked: tuple[SampleInput, int] | None = None  # the last one, if it cannot change
        self._sampler: CpuSampler | None = None
        if manifest.sampler is not None:
            self._sampler = CpuSampler(handle, manifest.sampler, pool.ctypes.data)
        self._manifest = manifest
        self._num_pages = num_pages
        self._one_step = threading.Lock()
        work = handle.sterna_work
        work.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self._team = Team(work, pool, threads, scratch.ctypes.data, plan.scratch // threads)
        self._release = weakref.finalize(self, _close_library, self._team, handle)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        """See Executable.step. RequestError for a batch that is malformed or too large."""
        prepared = prepare(batch, self._manifest, self._num_pages)
        entry = choose(self._entries, prepared.dims, given=batch.given is not None)
        with self._one_step:
            self._logits = self._run(entry, prepared)[: prepared.dims["r"]]
        return self._logits

    def run(self, batch: StepInput) -> None:
        """See Executable.run."""
        self.step(batch)

    def logits(self) -> NDArray[np.float32]:
        """See Executable.logits."""
        return self._logits

    def see(self, patches: Floats, grid: Grid | None = None) -> Floats:
        """See Executable.see. RequestError for a model without images, or other sizes."""
        prepared = prepare_sight(patches, grid, self._manifest)
        with self._one_step:
            rows: Floats = self._run(self._entries[SEE], prepared.step)[prepared.kept]
        return rows

    def _run(self, entry: Entry, prepared: Prepared) -> Floats:
        """Call an entry point; its whole result, of which the first rows are this run's."""
        self._check_open()
        call = self._calls[entry.name]
        for name, array in call.inputs:
            values = prepared.inputs[name]
            array[: len(values)] = values
        call.dims[:] = [prepared.dims[dim.name] for dim in entry.dims]
        self._team.begin()
        try:
            code = call.function(*call.addresses)
        finally:
            self._team.end()
        if code != 0:
            raise DeviceError(f"entry point {entry.name!r} failed with code {code}")
        return call.result

    def sample(self, given: SampleInput) -> Ints:
        """See Executable.sample. RequestError for what no sampler can read."""
        self._check_sample(given)
        with self._one_step:
            self._check_open()
            if self._sampler is None:
                return sample_rows(self._logits, given)
            self._team.begin()
            try:
                return self._sampler.run(self._logits, given)
            finally:
                self._team.end()

    def _check_sample(self, given: SampleInput) -> None:
        """Once for an input that comes again and cannot have changed."""
        rows, checked = len(self._logits), self._checked
        if checked is not None and checked[0] is given and checked[1] == rows:
            return
        check_sample(given, rows, self._manifest.model.vocab_size)
        self._checked = (given, rows) if is_frozen(given) else None

    def copy_page(self, source: int, destination: int) -> None:
        """See Executable.copy_page. RequestError for a page the cache does not have."""
        with self._one_step:
            self._page(destination)[:] = self._page(source)

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """See Executable.read_page. RequestError for a page the cache does not have."""
        with self._one_step:
            return self._page(page).copy()

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """See Executable.write_page. RequestError for a page the cache does not have."""
        with self._one_step:
            self._page(page)[:] = data

    def close(self) -> None:
        """See Executable.close. Logits handed out before stay readable."""
        with self._one_step:
            self._release()
            self._calls = {}
            self._params = []
            self._sampler = None
            self._cache = self._cache[:0].copy()

    def _page(self, page: int) -> NDArray[np.uint8]:
        self._check_open()
        if not 0 <= page < self._num_pages:
            raise RequestError(f"page {page} is not one of the cache's {self._num_pages} pages")
        found: NDArray[np.uint8] = self._cache[page]
        return found

    def _check_open(self) -> None:
        if not self._release.alive:
            raise DeviceError("the model was closed; load it again")


def _open(library: Path, data: bytes) -> ctypes.CDLL:
    """The loaded library, checked to be the file that `data` was read from."""
    try:
        handle = ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        raise ArtifactError(f"{library} cannot be loaded: {error}") from None
    try:
        abi, loaded = int(handle.sterna_abi()), _loaded_manifest(handle, data)
    except (AttributeError, ValueError) as error:
        _unload(handle)
        raise ArtifactError(f"{library} lacks what every Sterna library has: {error}") from None
    if abi == ABI and loaded == data:
        return handle
    _unload(handle)
    if abi != ABI:
        raise ArtifactError(
            f"{library} speaks version {abi} of the interface to the runtime, this Sterna "
            f"version {ABI}; compile the model again"
        )
    # A system hands out the library that it loaded earlier from this path, though the file was
    # replaced since.
    raise ArtifactError(
        f"{library} was replaced while its old version is in use by this process; close the "
        "model that uses it first"
    )


def _loaded_manifest(handle: ctypes.CDLL, data: bytes) -> bytes:
    mark = ctypes.c_char.in_dll(handle, decode(data).symbol)
    return ctypes.string_at(ctypes.addressof(mark) + len(MANIFEST_MARK) + 8, len(data))


def _unload(handle: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(handle._handle)
    else:
        _ctypes.dlclose(handle._handle)


def _load_params(
    manifest: Manifest,
    weights: Mapping[str, WeightReader],
    region: Region,
    mapped: Mapping[str, NDArray[np.uint8]],
) -> list[NDArray[np.uint8]]:
    """Every param's weights, in their order: those that are `mapped`, else read into the region."""
    found = []
    for param in manifest.params:
        if param.name in mapped:
            found.append(mapped[param.name])
            continue
        memory = region.take(packed_bytes(param))
        read_param(param, weights, memory)
        found.append(memory)
    return found


def _prepare_call(
    entry: Entry,
    handle: ctypes.CDLL,
    io: Mapping[str, NDArray[np.uint8]],
    shared: list[int],
    ends: tuple[int, int],
) -> _Call:
    try:
        function = handle[entry.symbol]
    except AttributeError:
        raise ArtifactError(
            f"the library has no function {entry.symbol!r} for its entry point {entry.name!r}"
        ) from None
    function.argtypes = [ctypes.c_void_p] * 4
    function.restype = ctypes.c_int32
    buffers = [io[buffer.name].ctypes.data for buffer in (*entry.inputs, *entry.outputs)]
    pointers = np.array([*buffers, *shared], dtype=np.uint64)
    dims = np.zeros(max(1, len(entry.dims)), dtype=np.int64)[: len(entry.dims)]
    (output,) = entry.outputs
    shape = largest_shape(output, entry)
    return _Call(
        entry=entry,
        function=function,
        inputs=tuple((buffer.name, io[buffer.name].view(np.int32)) for buffer in entry.inputs),
        result=io[output.name].view(np.float32)[: shape[0] * shape[1]].reshape(shape),
        dims=dims,
        pointers=pointers,
        addresses=(ends[0], pointers.ctypes.data, ends[1], dims.ctypes.data),
    )


def _close_library(team: Team, handle: ctypes.CDLL) -> None:
    team.stop()
    _unload(handle)
