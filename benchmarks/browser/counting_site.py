"""A server of folders that counts what it sends: benchmarks in a browser ask it for everything.

Not for anybody else: it serves what it is given to this machine, with the headers that make a page
cross-origin isolated, and lets the browser keep all of it.
"""

from __future__ import annotations

import mimetypes
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "max-age=3600",
    "Accept-Ranges": "bytes",
}
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


class Site:
    """Folders under their names; `sent` maps each path to the bytes that went out for it."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.sent: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("localhost", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    def find(self, path: str) -> Path | None:
        name, _, rest = path.lstrip("/").partition("/")
        root = self.folders.get(name)
        found = root / rest if root is not None and ".." not in rest.split("/") else None
        return found if found is not None and found.is_file() else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            file = site.find(path)
            if file is None:
                self._head(404, 0, {})
                return
            data = file.read_bytes()
            kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0]
            headers = {"Content-Type": kind or "application/octet-stream"}
            first, _, last = self.headers.get("Range", "")[6:].partition("-")
            begin, end = int(first or 0), int(last or len(data) - 1) + 1
            ranged = "Range" in self.headers
            if ranged:
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            data = data[begin:end]
            self._head(206 if ranged else 200, len(data), headers)
            if body:
                self.wfile.write(data)
                site.sent[path] = site.sent.get(path, 0) + len(data)

        def _head(self, status: int, size: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**_HEADERS, **headers, "Content-Length": str(size)}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
