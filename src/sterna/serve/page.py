"""The chat page's files, read once at the start: what a path holds, as what kind.

In: the folder `ui/` of this package. Out: routes for `/` and each file. A page may load nothing
from elsewhere and be framed by nobody: the headers say so.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sterna.serve.exchange import Exchange
from sterna.serve.state import Operation, State

FOLDER = Path(__file__).parent / "ui"
INDEX = "index.html"

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


def operations(folder: Path = FOLDER) -> Iterator[Operation]:
    """A route for each file of the folder, and `/` for its index."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _KINDS:
            name = path.relative_to(folder).as_posix()
            show = partial(_show, path.read_bytes(), _KINDS[path.suffix])
            yield Operation("GET", "/" if name == INDEX else f"/{name}", show, name, text=True)


async def _show(content: bytes, kind: bytes, exchange: Exchange, state: State) -> None:
    await exchange.send_bytes(content, ((b"content-type", kind), *_HEADERS))


def _kind(suffix: str) -> bytes:
    kind = mimetypes.types_map[suffix]
    return f"{kind}; charset=utf-8".encode() if kind.startswith("text/") else kind.encode()


_KINDS = {suffix: _kind(suffix) for suffix in (".html", ".css", ".js", ".svg", ".png", ".ico")}
