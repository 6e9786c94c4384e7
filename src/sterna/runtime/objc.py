"""Messages to Objective-C objects, through the system's runtime library and ctypes.

In: a receiver, a selector and ctypes arguments, whose types are the call's signature. Out: what the
method returned. Knows no framework.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_void_p
from typing import Any

_LIBRARY = "/usr/lib/libobjc.A.dylib"
_SYSTEM = "/usr/lib/libSystem.B.dylib"


class ObjectiveC:
    """The runtime library. OSError where there is none."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self._library.sel_registerName.restype = c_void_p
        self._library.objc_getClass.restype = c_void_p
        self._library.objc_autoreleasePoolPush.restype = c_void_p
        self._send = ctypes.cast(self._library.objc_msgSend, c_void_p).value
        self._selectors: dict[str, c_void_p] = {}
        self._methods: dict[tuple[Any, ...], Any] = {}

    def send(self, receiver: Any, selector: str, *args: Any, returns: Any = c_void_p) -> Any:
        """What the receiver answers. Each argument is a ctypes value of the method's own type."""
        if selector not in self._selectors:
            named = c_char_p(selector.encode())
            self._selectors[selector] = c_void_p(self._library.sel_registerName(named))
        signature = (returns, *map(type, args))
        if signature not in self._methods:
            made = ctypes.CFUNCTYPE(returns, c_void_p, c_void_p, *map(type, args))
            self._methods[signature] = made(self._send or 0)
        return self._methods[signature](receiver, self._selectors[selector], *args)

    def kind(self, name: str) -> c_void_p:
        """A class by name."""
        return c_void_p(self._library.objc_getClass(c_char_p(name.encode())))

    def text(self, value: str) -> c_void_p:
        """A string object, which the pool around the call owns."""
        given = c_char_p(value.encode())
        return c_void_p(self.send(self.kind("NSString"), "stringWithUTF8String:", given))

    def read(self, string: Any) -> str:
        """The characters of a string object."""
        found = self.send(string, "UTF8String", returns=c_char_p) if string else None
        return (found or b"").decode(errors="replace")

    def data(self, content: bytes) -> c_void_p:
        """A `dispatch_data_t` with a copy of the bytes, which the caller releases."""
        system = ctypes.CDLL(_SYSTEM)
        system.dispatch_data_create.restype = c_void_p
        size = ctypes.c_size_t(len(content))
        return c_void_p(system.dispatch_data_create(c_char_p(content), size, None, None))

    @contextmanager
    def pool(self) -> Iterator[None]:
        """Objects that methods hand out inside are released at the end."""
        held = c_void_p(self._library.objc_autoreleasePoolPush())
        try:
            yield
        finally:
            self._library.objc_autoreleasePoolPop(held)
