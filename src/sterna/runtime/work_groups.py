"""An Executable on any device that runs work groups: the manifest's launch program, step by step.

In: an artifact, the weights, and a Device: the handful of calls that drivers have in common. Out:
an Executable. All memory is taken at load: a buffer for each weight, the cache, each input and
output, and one arena that intermediate tensors are views of. A step writes the inputs, launches
every kernel in order, and reads the logits: one wait a step. Knows no driver.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import (
    CHOOSE,
    KV_CACHE,
    SEE,
    Buffer,
    Entry,
    Kernel,
    Launch,
    Manifest,
    Phase,
)
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, RequestError, UsageError
from sterna.base.sizes import evaluate
from sterna.base.target import others_of_kind
from sterna.runtime.batch import DIMS, Prepared, choose, prepare
from sterna.runtime.bundle import Bundle, read_bundle
from sterna.runtime.executable import Floats, Grid, Ints, StepInput
from sterna.runtime.memory import MemoryPlan, check_fits, io_bytes, largest_shape, memory_plan
from sterna.runtime.memory import packed_bytes as param_bytes
from sterna.runtime.params import WeightReader, check_names, read_param
from sterna.runtime.sampling import SampleInput, check_sample, sample_rows
from sterna.runtime.sight import prepare_sight

Handle = Any  # a driver's own buffer or function
# A step's launches with their groups and the values of their dims, in order.
Sized = Sequence[tuple[Handle, int, Sequence[int]]]
LAYER = "layer"
_STEPS_KEPT = 16  # sizes whose launches are kept ready
_PAGES_AT_ONCE = 1 << 24  # bytes of the cache that are zeroed together


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device can do, as its driver says. `buffer_bytes`: of one that a kernel takes.

    `lanes`: threads side by side that surely run together and can exchange values in registers.
    """

    memory: int | None
    buffer_bytes: int
    group_threads: int
    shared_bytes: int
    buffers: int
    allocation_bytes: int | None = None  # of one buffer, however much of it a kernel takes
    lanes: int = 0


class Device(Protocol):
    """One device and its queue: launches run in the order in which they were made."""

    @property
    def name(self) -> str: ...

    @property
    def limits(self) -> Limits: ...

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Handle]:
        """The functions of an artifact by symbol; ArtifactError where the driver refuses."""
        ...

    def allocate(self, size: int) -> Handle: ...

    def view(self, buffer: Handle, offset: int, size: int) -> Handle:
        """Part of a buffer, to be given to kernels."""
        ...

    def write(self, buffer: Handle, data: NDArray[Any], offset: int = 0) -> None:
        """Copy to the device. The array may be changed once this returns."""
        ...

    def read(self, buffer: Handle, out: NDArray[Any], offset: int = 0) -> None:
        """Wait for all launches, then copy from the device."""
        ...

    def copy(self, buffer: Handle, source: int, destination: int, size: int) -> None:
        """Copy inside a buffer; the places do not overlap."""
        ...

    def prepare(
        self, function: Handle, phase: Phase, buffers: Sequence[Handle], dims: Sequence[str]
    ) -> Handle:
        """A launch with its buffers; `dims` names the numbers that each run brings."""
        ...

    def run(self, launches: Sized) -> None:
        """Enqueue launches in order; for equal sizes of a step it may be the same object."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Call:
    """One launch of an entry, with everything but the sizes of the step."""

    launch: Handle
    groups: str
    dims: tuple[str, ...]
    row: int  # of the caches, that the dim "layer" stands for


def load_on(
    device: Device,
    library: Path,
    weights: Mapping[str, WeightReader],
    *,
    num_pages: int,
) -> GroupExecutable:
    """Load an artifact on a device. The device is closed when that fails, or by `close`.

    Raises ArtifactError for a file that is damaged, UsageError for a cache without pages,
    OutOfMemory before anything is allocated, DeviceError where a limit of the device is exceeded,
    MissingTensor and ShapeMismatch for weights that are not the library's.
    """
    try:
        bundle = read_bundle(library)
        check_names(bundle.manifest)
        if num_pages < 1:
            raise UsageError(
                f"a KV cache of {num_pages} pages was asked for; it needs one at least"
            )
        plan = memory_plan(bundle.manifest, num_pages, 1)
        check_fits(plan, device.limits.memory)
        _check_limits(bundle.manifest, plan, num_pages, device)
        return GroupExecutable(device, bundle, weights, num_pages)
    except BaseException:
        device.close()
        raise


class Load(Protocol):
    """See DeviceModule.load."""

    def __call__(
        self,
        library: Path,
        weights: Mapping[str, WeightReader],
        *,
        num_pages: int,
        threads: int | None = None,
        index: int = 0,
        packed: Path | None = None,
    ) -> GroupExecutable: ...


def loader(
    open_device: Callable[[int], Device], check: Callable[[Path, int], None] | None = None
) -> Load:
    """What loads an artifact on the device that `open_device` gives for a number; see `load_on`.

    Before that `check` refuses a library that wants what this device does not have.
    """

    def load(
        library: Path,
        weights: Mapping[str, WeightReader],
        *,
        num_pages: int,
        threads: int | None = None,
        index: int = 0,
        packed: Path | None = None,
    ) -> GroupExecutable:
        check_threads(threads)
        if check is not None:
            check(library, index)
        return load_on(open_device(index), library, weights, num_pages=num_pages)

    return load


def check_threads(threads: int | None) -> None:
    """Threads are for CPUs; UsageError where any were asked for."""
    if threads is not None:
        raise UsageError(f"{threads} threads were asked for; only the device cpu has threads")


class GroupExecutable:
    """An Executable on a Device; made by `load_on`. One step at a time, from any thread."""

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        weights: Mapping[str, WeightReader],
        num_pages: int,
    ) -> None:
        manifest = self._manifest = bundle.manifest
        self._device, self._num_pages = device, num_pages
        phases = [p for k in manifest.kernels for p in k.phases]
        self._functions = device.compile(bundle.code, phases)
        self._kernels = {k.name: k for k in manifest.kernels}
        self._io = {
            name: device.allocate(size) for name, size in io_bytes(manifest.launched).items()
        }
        self._cache = _zeroed(device, num_pages * manifest.kv_cache.page_bytes)
        self._fixed: dict[str, Handle] = self._io | {KV_CACHE: self._cache}
        for name, values in bundle.constants.items():
            self._fixed[name] = device.allocate(max(4, values.nbytes))
            device.write(self._fixed[name], values)
        self._sizes = {param.name: param_bytes(param) for param in manifest.params}
        for param in manifest.params:
            memory = np.zeros(param_bytes(param), np.uint8)
            read_param(param, weights, memory)
            self._fixed[param.name] = device.allocate(memory.nbytes)
            device.write(self._fixed[param.name], memory)
        arena = device.allocate(max(4, max((e.arena_bytes for e in manifest.launched), default=0)))
        self._entries = {entry.name: entry for entry in manifest.entries}
        self._calls = {entry.name: self._program(entry, arena) for entry in manifest.launched}
        self._written: dict[str, NDArray[Any]] = {}  # the sampler's inputs, as they lie there
        self._sized: OrderedDict[tuple[object, ...], Sized] = OrderedDict()
        self._one_step = threading.Lock()
        self._open = True
        # The last step's entry, its rows of logits, and these once the host has read them.
        self._ran, self._rows = manifest.entries[0], 0
        self._logits: Floats | None = None

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        """See Executable.step. RequestError for a batch that is malformed or too large."""
        self.run(batch)
        return self.logits()

    def run(self, batch: StepInput) -> None:
        """See Executable.run; returns before the device has done it. Errors as of `step`."""
        prepared = prepare(batch, self._manifest, self._num_pages)
        entry = choose(self._entries, prepared.dims, given=batch.given is not None)
        with self._one_step:
            self._launch(entry, prepared)
            self._ran, self._rows, self._logits = entry, prepared.dims["r"], None

    def logits(self) -> NDArray[np.float32]:
        """See Executable.logits; waits for the device, and reads them once a step."""
        with self._one_step:
            if self._logits is None:
                self._check_open()
                self._logits = self._result(self._ran, self._rows)
            return self._logits

    def see(self, patches: Floats, grid: Grid | None = None) -> Floats:
        """See Executable.see. RequestError for a model without images, or other sizes."""
        prepared = prepare_sight(patches, grid, self._manifest)
        with self._one_step:
            self._launch(self._entries[SEE], prepared.step)
            rows = self._result(self._entries[SEE], prepared.step.dims["n"])
        return rows[prepared.kept]

    def _launch(self, entry: Entry, prepared: Prepared) -> None:
        """Write what an entry point takes, and launch it."""
        self._check_open()
        for buffer in entry.inputs:
            values = prepared.inputs[buffer.name]
            if len(values):
                self._device.write(self._io[buffer.name], values)
        self._device.run(self._launches_of(entry, prepared.dims))

    def _result(self, entry: Entry, rows: int) -> Floats:
        """The first rows of what an entry point made, once the device has."""
        (output,) = entry.outputs
        result = np.empty((rows, largest_shape(output, entry)[1]), np.float32)
        if result.size:
            self._device.read(self._io[output.name], result)
        return result

    def sample(self, given: SampleInput) -> Ints:
        """See Executable.sample. The device chooses; the host does where it has no room for all."""
        check_sample(given, self._rows, self._manifest.model.vocab_size)
        self._check_open()
        sampler = self._manifest.sampler
        if sampler is None or sampler.name != CHOOSE:
            return sample_rows(self.logits(), given)
        dims = {"r": len(given.rows), "e": len(given.edit_ids), "v": given.vocabulary}
        dims["d"] = int(given.inverse_temperature.any())
        if any(dims[d.name] > d.hi for d in sampler.dims):
            return sample_rows(self.logits(), given)
        return self._choose(sampler, given, dims)

    def _choose(self, sampler: Entry, given: SampleInput, dims: Mapping[str, int]) -> Ints:
        """The tokens, of which alone is read."""
        (output,) = sampler.outputs
        tokens = np.empty(dims["r"], np.int32)
        with self._one_step:
            self._check_open()
            for buffer in sampler.inputs[1:]:
                values: NDArray[Any] = getattr(given, buffer.name)
                last = self._written.get(buffer.name)
                if values.size and (last is None or not np.array_equal(last, values)):
                    self._device.write(self._io[buffer.name], values)
                    self._written[buffer.name] = values
            self._device.run(self._launches_of(sampler, dims))
            self._device.read(self._io[output.name], tokens)
        return tokens

    def copy_page(self, source: int, destination: int) -> None:
        """See Executable.copy_page. RequestError for a page the cache does not have."""
        size = self._manifest.kv_cache.page_bytes
        with self._one_step:
            places = self._place(source), self._place(destination)
            if source != destination:
                self._device.copy(self._cache, *places, size)

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """See Executable.read_page. RequestError for a page the cache does not have."""
        data = np.empty(self._manifest.kv_cache.page_bytes, np.uint8)
        with self._one_step:
            self._device.read(self._cache, data, self._place(page))
        return data

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """See Executable.write_page. RequestError for a page the cache does not have."""
        with self._one_step:
            self._device.write(self._cache, data, self._place(page))

    def _place(self, page: int) -> int:
        """Where a page begins in the cache."""
        self._check_open()
        if not 0 <= page < self._num_pages:
            raise RequestError(f"page {page} is not one of the cache's {self._num_pages} pages")
        return page * self._manifest.kv_cache.page_bytes

    def close(self) -> None:
        """See Executable.close."""
        with self._one_step:
            if self._open:
                self._open = False
                self._calls = {}
                self._sized.clear()
                self._device.close()

    def _check_open(self) -> None:
        if not self._open:
            raise DeviceError("the model was closed; load it again")

    # The launch program.

    def _launches_of(self, entry: Entry, dims: Mapping[str, int]) -> Sized:
        """An entry's launches at some sizes, the same object while the sizes are remembered."""
        key = (entry.name, *dims.items())
        found = self._sized.get(key)
        if found is None:
            found = self._sized[key] = _sized(self._calls[entry.name], dims)
            if len(self._sized) > _STEPS_KEPT:
                self._sized.popitem(last=False)
        self._sized.move_to_end(key)
        return found

    def _program(self, entry: Entry, arena: Handle) -> list[_Call]:
        places = {b.name: self._view(arena, b, entry) for b in entry.arena}
        calls: list[_Call] = []
        for step in entry.steps:
            if isinstance(step, Launch):
                calls += self._launches(step, places, 0, 0)
            else:
                for i in range(step.count):
                    for launch in step.body:
                        layer = step.first + i * step.stride + launch.layer
                        calls += self._launches(launch, places, layer, i)
        return calls

    def _view(self, arena: Handle, buffer: Buffer, entry: Entry) -> Handle:
        size = int(np.prod(largest_shape(buffer, entry))) * dtype(buffer.dtype).bytes
        return self._device.view(arena, buffer.offset, max(4, size))

    def _part(self, name: str, whole: Handle, part: int) -> Handle:
        """Part of a weight that is bound in parts."""
        size, each = self._sizes.get(name, 0), self._manifest.part_bytes
        if not 0 <= part * each < size:
            raise ArtifactError(f"the library binds a part of {name!r} that it does not have")
        return self._device.view(whole, part * each, min(each, size - part * each))

    def _launches(
        self, launch: Launch, places: Mapping[str, Handle], layer: int, run: int
    ) -> list[_Call]:
        kernel = self._kernels.get(launch.kernel)
        if kernel is None:
            raise ArtifactError(f"the library launches a kernel {launch.kernel!r} it does not have")
        names = [arg.replace("{i}", str(layer)) for arg in launch.args]
        row = layer if launch.row is None else launch.row + run * launch.row_stride
        return [self._call(kernel, phase, names, places, row) for phase in kernel.phases]

    def _call(
        self,
        kernel: Kernel,
        phase: Phase,
        names: Sequence[str],
        places: Mapping[str, Handle],
        row: int,
    ) -> _Call:
        buffers = []
        for i, part in numbered(phase.buffers):
            found = places.get(names[i]) if names[i] in places else self._fixed.get(names[i])
            if found is None:
                raise ArtifactError(f"kernel {kernel.name} reads {names[i]!r}, which nothing holds")
            if part is not None:
                found = self._part(names[i], found, part)
            buffers.append(found)
        function = self._functions[phase.symbol]
        prepared = self._device.prepare(function, phase, buffers, kernel.dims)
        return _Call(prepared, phase.groups, kernel.dims, row)


def numbered(buffers: Sequence[int]) -> list[tuple[int, int | None]]:
    """Positions with the number of the part, for those that come several times."""
    return [
        (i, buffers[:at].count(i) if buffers.count(i) > 1 else None) for at, i in enumerate(buffers)
    ]


def _sized(calls: Sequence[_Call], dims: Mapping[str, int]) -> Sized:
    """Launches with their numbers of groups; those without any are left out."""
    known: dict[str, int] = {}
    result: list[tuple[Handle, int, Sequence[int]]] = []
    for call in calls:
        groups = known.get(call.groups)
        if groups is None:
            groups = known[call.groups] = evaluate(call.groups, dims)
        if groups > 0:
            values = [call.row if d == LAYER else dims[d] for d in call.dims]
            result.append((call.launch, groups, values))
    return result


def _zeroed(device: Device, size: int) -> Handle:
    buffer = device.allocate(size)
    zeros = np.zeros(min(size, _PAGES_AT_ONCE), np.uint8)
    for offset in range(0, size, _PAGES_AT_ONCE):
        device.write(buffer, zeros[: min(len(zeros), size - offset)], offset)
    return buffer


def _check_limits(manifest: Manifest, plan: MemoryPlan, num_pages: int, device: Device) -> None:
    """Every number of the manifest is one that this device has."""
    limits = device.limits
    cache = num_pages * manifest.kv_cache.page_bytes
    params = {p.name: param_bytes(p) for p in manifest.params}
    sizes = params | {"the KV cache": cache}
    if manifest.states is not None:
        sizes["the states of all sequences"] = manifest.states.slots * manifest.states.slot_bytes
    part, whole = manifest.part_bytes, limits.allocation_bytes
    for title, size in sizes.items():
        bound = min(size, part) if part and title in params else size
        if bound > limits.buffer_bytes or (whole is not None and size > whole):
            raise OutOfMemory(
                f"{title} takes {size} bytes, and {device.name} binds {limits.buffer_bytes} at "
                "most; use a smaller context or batch, or a quantization with fewer bits"
            )
    known = {*DIMS, LAYER, *(d.name for entry in manifest.launched for d in entry.dims)}
    for kernel in manifest.kernels:
        if not known.issuperset(kernel.dims):
            raise ArtifactError(f"kernel {kernel.name} takes dims that this Sterna does not know")
        for phase in kernel.phases:
            for what, used, most in (
                ("threads in a group", phase.threads, limits.group_threads),
                ("bytes of shared memory", phase.shared_bytes, limits.shared_bytes),
                ("buffers", len(phase.buffers), limits.buffers),
                ("threads of a subgroup", phase.lanes, limits.lanes),
            ):
                if used > most:
                    raise DeviceError(
                        f"kernel {kernel.name} wants {used} {what}, and {device.name} has {most}; "
                        f"compile the model with --target {others_of_kind(manifest.target)}"
                    )
