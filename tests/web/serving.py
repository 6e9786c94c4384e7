"""A server of files for browser tests: ranges, a list of what was asked, faults on demand.

Pages of browsers that nothing drives tell it what they found.
"""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request that was answered: its path, and the byte from which it wanted the file."""

    path: str
    start: int


@dataclass
class Faults:
    """What goes wrong, by path."""

    cut: dict[str, int] = field(default_factory=dict)  # the connection breaks after so many bytes
    flipped: set[str] = field(default_factory=set)  # one bit in the middle is wrong
    status: dict[str, int] = field(default_factory=dict)
    dark: bool = False  # after a connection that broke, no answer at all
    down: bool = False  # no answer at all


class FileServer:
    """Serves folders under their names, and what is in `Faults` wrongly."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.asked: list[Asked] = []
        self.told: SimpleQueue[Any] = SimpleQueue()  # what pages posted
        self.faults = Faults()
        self._server = ThreadingHTTPServer(("localhost", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    def forget(self) -> None:
        """Begin anew: nothing asked, nothing wrong."""
        self.asked.clear()
        self.faults = Faults()

    def find(self, path: str) -> Path | None:
        folder, _, name = path.lstrip("/").partition("/")
        root = self.folders.get(folder)
        found = root / name if root is not None else None
        return found if found is not None and found.is_file() else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            faults, file = server.faults, server.find(path)
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            if faults.down:
                self.close_connection = True
                return
            server.asked.append(Asked(path, start))
            if file is None or path in faults.status:
                self._say(faults.status.get(path, 404), b"", {})
                return
            data = bytearray(file.read_bytes())
            if path in faults.flipped:
                data[len(data) // 2] ^= 1
            whole = f"bytes {start}-{len(data) - 1}/{len(data)}"
            ranged = {"Content-Range": whole} if start else {}
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            self._say(206 if start else 200, bytes(data[start:]), {"Content-Type": kind, **ranged})

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            server.told.put(json.loads(self.rfile.read(size)))
            self._say(200, b"", {})

        def _say(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            cut = server.faults.cut.pop(self.path.split("?")[0], None)
            if cut is not None:
                self.close_connection = True
                server.faults.down |= server.faults.dark
            self.wfile.write(data if cut is None else data[:cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
