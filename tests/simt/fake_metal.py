"""Metal's objects as `runtime/metal.py` sends messages to them, running kernels on the CPU.

Buffers are memory, source is compiled by g++ over simt.h, and a command buffer runs what was
encoded when it is waited for, so a device that reads or writes too early is found out.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int32, c_void_p
from dataclasses import dataclass, field
from typing import Any

from simt_device import compiled

from sterna.runtime.metal import MetalDevice

_KERNEL = re.compile(r"kernel void (\w+)\(")
COMPLETED, FAILED = 4, 5
FINISHED = b"MTLB"  # begins what the tests' Xcode makes: this line, and the source again


def _number(given: Any) -> int:
    return int(getattr(given, "value", given) or 0)


@dataclass
class Encoding:
    """What is set for the next dispatch."""

    function: Any = None
    buffers: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)


@dataclass
class Commands:
    steps: list[Callable[[], None]] = field(default_factory=list)
    committed: bool = False
    status: int = 0


class FakeMetal:
    """The Objective-C runtime with one Metal device behind it; `fails` names what does not work."""

    def __init__(self, *fails: str, memory: int = 1 << 31) -> None:
        self.fails, self.memory = fails, memory
        self.objects: dict[int, Any] = {1: "device"}
        self.references: dict[int, int] = {}
        self.options: list[str] = []

    def _new(self, made: Any) -> int:
        at = max(self.objects) + 16
        self.objects[at] = made
        self.references[at] = 1
        return at

    def kind(self, name: str) -> c_void_p:
        return c_void_p(self._new(name))

    def text(self, value: str) -> c_void_p:
        return c_void_p(self._new(value))

    def read(self, string: Any) -> str:
        return str(self.objects[_number(string)]) if _number(string) else ""

    def data(self, content: bytes) -> c_void_p:
        return c_void_p(self._new(content))

    @contextmanager
    def pool(self) -> Iterator[None]:
        yield

    def send(self, receiver: Any, selector: str, *args: Any, returns: Any = c_void_p) -> Any:
        found = self.objects[_number(receiver)]
        assert self.references.get(_number(receiver), 1) > 0, f"{selector} after its release"
        method = getattr(self, selector.split(":")[0])
        if selector in self.fails:
            if args and "error:" in selector:
                place = ctypes.cast(args[-1], ctypes.POINTER(ctypes.c_void_p))
                place[0] = self._new("an error of Metal's")
            return None
        return method(_number(receiver), found, *args)

    # NSObject, NSError, NSArray.

    def new(self, at: int, found: Any) -> int:
        return self._new(found)

    def retain(self, at: int, found: Any) -> int:
        self.references[at] = self.references.get(at, 1) + 1
        return at

    def release(self, at: int, found: Any) -> None:
        self.references[at] -= 1

    def localizedDescription(self, at: int, found: Any) -> int:  # noqa: N802
        return at

    def count(self, at: int, found: Any) -> int:
        return len(found)

    def objectAtIndex(self, at: int, found: Any, index: Any) -> int:  # noqa: N802
        return int(found[_number(index)])

    # MTLDevice.

    def name(self, at: int, found: Any) -> int:
        return self._new("Imagined M9")

    def recommendedMaxWorkingSetSize(self, at: int, found: Any) -> int:  # noqa: N802
        return self.memory

    def maxBufferLength(self, at: int, found: Any) -> int:  # noqa: N802
        return 1 << 30

    def supportsFamily(self, at: int, found: Any, family: Any) -> bool:  # noqa: N802
        return _number(family) <= 1009

    def maxThreadgroupMemoryLength(self, at: int, found: Any) -> int:  # noqa: N802
        return 32768

    def newCommandQueue(self, at: int, found: Any) -> int:  # noqa: N802
        return self._new("queue")

    def newBufferWithLength(self, at: int, found: Any, size: Any, options: Any) -> int:  # noqa: N802
        return self._new(ctypes.create_string_buffer(b"\xff" * _number(size), _number(size)))

    def contents(self, at: int, found: Any) -> int:
        return ctypes.addressof(found)

    def setFastMathEnabled(self, at: int, found: Any, on: Any) -> None:  # noqa: N802
        self.options.append(f"fast math {on.value}")

    def newLibraryWithData(self, at: int, found: Any, data: Any, error: Any) -> Any:  # noqa: N802
        self.options.append("finished code")
        mark, _, text = self.objects[_number(data)].partition(b"\n")
        assert mark == FINISHED
        return self._library(text.decode())

    def newLibraryWithSource(  # noqa: N802
        self, at: int, found: Any, source: Any, options: Any, error: Any
    ) -> Any:
        return self._library(self.objects[_number(source)])

    def _library(self, source: str) -> Any:
        text = re.sub(r"\[\[.*?\]\]", "", source)
        entries = [
            f'extern "C" const char *run_{title}(unsigned groups, unsigned threads, void **buffers,'
            f" int *dims) {{ return simt::launch({title}, groups, threads, "
            "simt::Launch{buffers, dims}); }"
            for title in _KERNEL.findall(text)
        ]
        return self._new(compiled("\n".join(['#include "languages.h"', text, *entries])))

    def newFunctionWithName(self, at: int, found: Any, name: Any) -> Any:  # noqa: N802
        function = getattr(found, f"run_{self.objects[_number(name)]}", None)
        if function is None:
            return None
        function.restype = ctypes.c_char_p
        return self._new(function)

    def newComputePipelineStateWithFunction(  # noqa: N802
        self, at: int, found: Any, function: Any, error: Any
    ) -> int:
        return self._new(self.objects[_number(function)])

    def maxTotalThreadsPerThreadgroup(self, at: int, found: Any) -> int:  # noqa: N802
        return 32 if "few threads" in self.fails else 1024

    # MTLCommandBuffer and its encoder.

    def commandBuffer(self, at: int, found: Any) -> int:  # noqa: N802
        return self._new(Commands())

    def computeCommandEncoder(self, at: int, found: Commands) -> int:  # noqa: N802
        return self._new((found, Encoding()))

    def setComputePipelineState(self, at: int, found: Any, pipeline: Any) -> None:  # noqa: N802
        found[1].function = self.objects[_number(pipeline)]

    def setBuffer(self, at: int, found: Any, buffer: Any, offset: Any, index: Any) -> None:  # noqa: N802
        room = self.objects[_number(buffer)]
        found[1].buffers[_number(index)] = ctypes.addressof(room) + _number(offset)

    def setBytes(self, at: int, found: Any, place: Any, size: Any, index: Any) -> None:  # noqa: N802
        assert _number(size) == 4
        found[1].numbers[_number(index)] = c_int32.from_address(_number(place)).value

    def dispatchThreadgroups(self, at: int, found: Any, groups: Any, threads: Any) -> None:  # noqa: N802
        commands, state = found
        count = len(state.buffers)
        numbers = [state.numbers[i] for i in sorted(state.numbers) if i >= count]
        buffers = (c_void_p * max(1, count))(*(state.buffers[i] for i in range(count)))
        dims = (c_int32 * max(1, len(numbers)))(*numbers)
        function, sizes = state.function, (groups.width, threads.width)
        found[1].buffers, found[1].numbers = {}, {}

        def step() -> None:
            error = function(ctypes.c_uint(sizes[0]), ctypes.c_uint(sizes[1]), buffers, dims)
            assert error is None, error.decode()

        commands.steps.append(step)

    def endEncoding(self, at: int, found: Any) -> None:  # noqa: N802
        """Nothing more is encoded."""

    def commit(self, at: int, found: Commands) -> None:
        found.committed = True

    def waitUntilCompleted(self, at: int, found: Commands) -> None:  # noqa: N802
        assert found.committed
        if "a step" in self.fails:
            found.status = FAILED
            return
        for step in found.steps:
            step()
        found.status = COMPLETED

    def status(self, at: int, found: Commands) -> int:
        return found.status

    def error(self, at: int, found: Commands) -> int:
        return self._new("the GPU was taken away")


def simulated_metal() -> MetalDevice:
    """Metal as a device, over the objects above."""
    runtime: Any = FakeMetal()
    return MetalDevice(runtime, c_void_p(1))
