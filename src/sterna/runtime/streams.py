"""A device whose driver has streams, modules and graphs: what two makers' drivers have in common.

Both drivers offer the same calls under other names, which a subclass gives. Kernels go into one
stream. A step whose sizes were seen before is captured once as a graph, and from then on is one
call. The processor's side of every copy is pinned memory, so writing never waits.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory
from sterna.runtime.work_groups import Limits, Sized

_STAGING = 8 << 20
_GRAPHS = 16  # sizes of a step that are remembered
_CAPTURE = c_int32(1)  # calls of this thread alone
_OUT_OF_MEMORY, _NO_DEVICE = 2, 100
_NO_CODE, _BAD_CODE = 209, (200, 218, 222)


@dataclass(frozen=True, slots=True)
class Calls:
    """What a driver calls its functions. Arguments are alike, save where `StreamDevice` asks."""

    memory_info: str
    allocate: str
    free: str
    allocate_host: str
    free_host: str
    to_device: str
    to_host: str
    within: str
    make_stream: str
    free_stream: str
    synchronize: str
    load_module: str
    unload_module: str
    function: str
    launch: str
    begin_capture: str
    end_capture: str
    instantiate: str
    launch_graph: str
    free_graph: str
    free_executable: str

    def names(self) -> tuple[str, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def is_source(code: bytes) -> bool:
    """Whether an artifact's code is text that has to be compiled here, not PTX or a binary."""
    head = code[:256].translate(None, b"\t\r\n")
    return head.isascii() and head.decode().isprintable() and b".version" not in head


def compiled(
    compiler: Any, prefix: str, kind: str, source: bytes, options: Sequence[bytes], device: str
) -> bytes:
    """Source through a driver's own compiler: `prefix` begins its functions' names, `kind` says
    which of its results is wanted. ArtifactError with the beginning of its log."""

    def call(name: str, *args: Any) -> int:
        return int(getattr(compiler, prefix + name)(*args))

    program, size = c_void_p(), c_size_t()
    call("CreateProgram", byref(program), c_char_p(source), c_char_p(b"kernels"), 0, None, None)
    given = (c_char_p * len(options))(*options)
    failed = call("CompileProgram", program, c_int32(len(options)), given)
    if failed:
        call("GetProgramLogSize", program, byref(size))
        log = ctypes.create_string_buffer(max(1, size.value))
        call("GetProgramLog", program, log)
        told = log.value.decode(errors="replace").strip()[:2000]
        raise ArtifactError(f"the compiler of {device} refused the kernels: {told}")
    call(f"Get{kind}Size", program, byref(size))
    code = ctypes.create_string_buffer(size.value)
    call(f"Get{kind}", program, code)
    call("DestroyProgram", byref(program))
    return code.raw


@dataclass(frozen=True, slots=True)
class _Memory:
    address: int
    size: int


class _Launch:
    """A kernel with its buffers, and room for the sizes that each run brings."""

    def __init__(self, function: c_void_p, threads: int, buffers: Sequence[_Memory], dims: int):
        self.function, self.threads = function, c_uint32(threads)
        self.buffers = (c_uint64 * max(1, len(buffers)))(*(b.address for b in buffers))
        self.sizes = (c_int32 * max(1, dims))()
        places = [ctypes.addressof(self.buffers) + 8 * i for i in range(len(buffers))]
        places += [ctypes.addressof(self.sizes) + 4 * i for i in range(dims)]
        self.arguments = (c_void_p * max(1, len(places)))(*places)


class StreamDevice:
    """See work_groups.Device. A subclass opens the driver and says how it differs."""

    calls: Calls
    maker: str  # of the driver, for messages
    graph_options: tuple[Any, ...]  # behind the graph, when it is made ready to launch

    def __init__(self, driver: Any, name: str, limits: Limits) -> None:
        self._driver, self.name, self.limits = driver, name, limits
        self._memory: list[int] = []
        self._modules: list[c_void_p] = []
        self._graphs: OrderedDict[int, tuple[Sized, c_void_p | None]] = OrderedDict()
        self._stream, self._staging = c_void_p(), c_void_p()
        self._used = 0  # of the staging memory, by copies that may still run
        self._activate()
        self._call(self.calls.make_stream, byref(self._stream), c_uint32(0), what="a stream")
        self._call(
            self.calls.allocate_host, byref(self._staging), c_size_t(_STAGING), c_uint32(0),
            what="memory that both sides reach",
        )  # fmt: skip

    # How drivers differ.

    def _activate(self) -> None:
        """Make this thread's calls go to the device."""
        raise NotImplementedError

    def _reason(self, code: int) -> str:
        """What the driver says of an error."""
        raise NotImplementedError

    def _binary(self, code: bytes) -> bytes:
        """What the driver can load: the code itself, or what its own compiler makes of source."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give the device back to the driver."""
        raise NotImplementedError

    def _call(self, function: str, *args: Any, what: str) -> None:
        code = getattr(self._driver, function)(*args)
        if code:
            self._fail(code, what)

    def _fail(self, code: int, what: str) -> None:
        if code == _OUT_OF_MEMORY:
            raise OutOfMemory(
                f"{self.name} has no memory left for {what}; use a smaller context or batch"
            )
        raise DeviceError(f"{self.maker} failed in {what} on {self.name}: {self._reason(code)}")

    # Memory.

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        self._activate()
        free, total = c_size_t(), c_size_t()
        self._call(self.calls.memory_info, byref(free), byref(total), what="asking for its memory")
        return free.value

    def allocate(self, size: int) -> _Memory:
        self._activate()
        found, size = c_uint64(), -(-max(size, 1) // 16) * 16
        self._call(
            self.calls.allocate, byref(found), c_size_t(size), what=f"a buffer of {size} bytes"
        )
        self._memory.append(found.value)
        return _Memory(found.value, size)

    def view(self, buffer: _Memory, offset: int, size: int) -> _Memory:
        return _Memory(buffer.address + offset, size)

    def write(self, buffer: _Memory, data: NDArray[Any], offset: int = 0) -> None:
        self._activate()
        held = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        for at in range(0, len(held), _STAGING):
            part = held[at : at + _STAGING]
            place = self._stage(len(part))
            ctypes.memmove(place, part.ctypes.data, len(part))
            self._call(
                self.calls.to_device, c_uint64(buffer.address + offset + at), c_void_p(place),
                c_size_t(len(part)), self._stream, what="writing a buffer",
            )  # fmt: skip

    def _stage(self, size: int) -> int:
        """Pinned memory that no running copy reads."""
        begin = -(-self._used // 64) * 64
        if begin + size > _STAGING:
            self._wait("writing a buffer")
            begin = 0
        self._used = begin + size
        return int(self._staging.value or 0) + begin

    def read(self, buffer: _Memory, out: NDArray[Any], offset: int = 0) -> None:
        self._activate()
        flat = out.reshape(-1).view(np.uint8)
        for at in range(0, max(1, len(flat)), _STAGING):
            part = flat[at : at + _STAGING]
            place = self._stage(len(part))
            self._call(
                self.calls.to_host, c_void_p(place), c_uint64(buffer.address + offset + at),
                c_size_t(len(part)), self._stream, what="reading a result",
            )  # fmt: skip
            self._wait("a step")
            ctypes.memmove(part.ctypes.data, place, len(part))

    def copy(self, buffer: _Memory, source: int, destination: int, size: int) -> None:
        self._activate()
        self._call(
            self.calls.within, c_uint64(buffer.address + destination),
            c_uint64(buffer.address + source), c_size_t(size), self._stream, what="copying a page",
        )  # fmt: skip

    def _wait(self, what: str) -> None:
        self._call(self.calls.synchronize, self._stream, what=what)
        self._used = 0

    # Kernels.

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        """See Device. ArtifactError for code of other hardware, or that the driver refuses."""
        self._activate()
        binary, module = self._binary(code), c_void_p()
        failed = getattr(self._driver, self.calls.load_module)(byref(module), c_char_p(binary))
        if failed == _NO_CODE:
            raise ArtifactError(
                f"the library has no code for {self.name}; compile the model for this hardware"
            )
        if failed in _BAD_CODE:
            raise ArtifactError(f"{self.name} refused the kernels: {self._reason(failed)}")
        if failed:
            self._fail(failed, "loading the kernels")
        self._modules.append(module)
        result = {}
        for phase in phases:
            function = c_void_p()
            symbol = c_char_p(phase.symbol.encode())
            if getattr(self._driver, self.calls.function)(byref(function), module, symbol):
                raise ArtifactError(f"the library has no kernel {phase.symbol!r}")
            result[phase.symbol] = function
        return result

    def prepare(
        self, function: c_void_p, phase: Phase, buffers: Sequence[_Memory], dims: Sequence[str]
    ) -> _Launch:
        return _Launch(function, phase.threads, buffers, len(dims))

    def run(self, launches: Sized) -> None:
        """The first time launch by launch, the second as a graph that is captured then.

        `launches` of the same sizes are the same object, as GroupExecutable hands them over.
        """
        self._activate()
        known, graph = self._graphs.get(id(launches), (None, None))
        if known is not launches:
            self._enqueue(launches)
            self._remember(launches, None)
            return
        if graph is None:
            graph = self._captured(launches)
        self._remember(launches, graph)
        self._call(self.calls.launch_graph, graph, self._stream, what="a step")

    def _enqueue(self, launches: Sized) -> None:
        one, none = c_uint32(1), c_void_p()
        launch_kernel = getattr(self._driver, self.calls.launch)
        for launch, groups, values in launches:
            launch.sizes[: len(values)] = values
            code = launch_kernel(
                launch.function, c_uint32(groups), one, one, launch.threads, one, one,
                c_uint32(0), self._stream, launch.arguments, none,
            )  # fmt: skip
            if code:
                self._fail(code, "launching a kernel")

    def _captured(self, launches: Sized) -> c_void_p:
        graph = c_void_p()
        self._call(self.calls.begin_capture, self._stream, _CAPTURE, what="recording a step")
        try:
            self._enqueue(launches)
        finally:
            self._call(self.calls.end_capture, self._stream, byref(graph), what="recording a step")
        made = c_void_p()
        self._call(
            self.calls.instantiate, byref(made), graph, *self.graph_options, what="recording a step"
        )
        self._call(self.calls.free_graph, graph, what="recording a step")
        return made

    def _remember(self, launches: Sized, graph: c_void_p | None) -> None:
        self._graphs[id(launches)] = launches, graph
        self._graphs.move_to_end(id(launches))
        if len(self._graphs) > _GRAPHS:
            _, (_, oldest) = self._graphs.popitem(last=False)
            self._free_graph(oldest)

    def _free_graph(self, graph: c_void_p | None) -> None:
        if graph is not None:
            getattr(self._driver, self.calls.free_executable)(graph)

    def close(self) -> None:
        if not self._stream:
            return
        driver, calls = self._driver, self.calls
        self._activate()
        getattr(driver, calls.synchronize)(self._stream)  # an error of a step was told before
        while self._graphs:
            self._free_graph(self._graphs.popitem()[1][1])
        for module in self._modules:
            getattr(driver, calls.unload_module)(module)
        for address in self._memory:
            getattr(driver, calls.free)(c_uint64(address))
        getattr(driver, calls.free_host)(self._staging)
        getattr(driver, calls.free_stream)(self._stream)
        self._modules, self._memory, self._stream = [], [], c_void_p()
        self._release()
