"""The prefix cache on disk: each full page of the tree a file, so that a restart finds it again.

The folder mirrors the tree. A page is written beside and renamed once it is full, and removed when
it is evicted; so a kill at any moment leaves whole pages only. A file carries what it continues,
its tokens and a hash of all of it: one that is damaged is refused, with a note in the log, and
removed. Pages of another library or other weights lie in a folder of another name and are never
looked at; those of adapters are not kept. Knows files and bytes of pages; what is in them is the
device's.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError
from sterna.engine.pages import Pages
from sterna.engine.prefix import Node, PrefixTree, Tokens
from sterna.runtime.executable import Executable

_LOG = logging.getLogger("sterna")
_MAGIC = b"STERNA PAGE 1\n"
_SUFFIX = ".page"
_LENGTH, _DIGEST = 8, 32  # bytes of a length, of a hash
_MOST_HEADER = 1 << 20
_QUEUE = 256  # pages that wait to be written; more wait in the tree

Data = NDArray[np.uint8]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    parent: str  # name of the page before; "" for a first page
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    parent: str
    tokens: Tokens
    used: float  # the file's time


class PrefixStore:
    """One engine's pages in `folder`, under a name made of `identity`.

    `identity` tells all that decides what is in a page: library and weights. UsageError when the
    folder cannot be made.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder.expanduser() / hashlib.sha256(identity.encode()).hexdigest()[:32]
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"the prefix cache's folder {folder} cannot be made ({error.strerror}); give "
                "--prefix-cache-dir a folder that can be written"
            ) from None
        self.refused = 0  # damaged files found by `restore`
        self._names: dict[int, str] = {}  # of nodes on disk or on their way, by id
        self._root: Node | None = None  # of the tree that is followed
        self._queue: queue.SimpleQueue[tuple[str, bytes | None] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="sterna-prefix", daemon=True)
        self._thread.start()

    def restore(self, tree: PrefixTree, pages: Pages, executable: Executable) -> int:
        """Fill the tree and the device with what an earlier engine kept; how many pages it was.

        More than there are free pages are left out, and removed, the oldest first. From now on
        the tree notes what `follow` will want to know.
        """
        stored = {one.name: one for one in self._scan()}
        kept = _closed(stored, pages.available)
        for name in stored.keys() - kept.keys():
            self._queue.put((name, None))
        self._root = tree.root
        nodes: dict[str, Node] = {"": tree.root}
        size = executable.read_page(0).nbytes
        for one in kept.values():  # parents before children
            data, parent = self._data(one.name), nodes.get(one.parent)
            if data is None or len(data) != size or parent is None:
                self._refuse(one.name)
                continue
            (page,) = pages.allocate(1)
            executable.write_page(page, data)
            node = tree.insert(parent, one.tokens, page)
            pages.free([page])
            assert node is not None, "two files of one page"
            nodes[one.name] = node
            self._names[id(node)] = one.name
        if self.refused:
            _LOG.warning("%d damaged pages in %s were refused", self.refused, self._folder)
        tree.born = deque()
        return len(nodes) - 1

    def follow(self, tree: PrefixTree, executable: Executable, *, patient: bool = False) -> None:
        """Write the tree's new full pages, remove those it dropped.

        Those for which the disk is too slow stay new, but for one of a patient caller.
        """
        while tree.gone:
            name = self._names.pop(id(tree.gone.popleft()), None)
            if name is not None:
                self._queue.put((name, None))
        while tree.born and (patient or self._queue.qsize() < _QUEUE):
            patient = False
            node = tree.born.popleft()
            name = self._name(node)
            if name is not None:
                self._names[id(node)] = name
                parent = self._names.get(id(node.parent), "")
                data = executable.read_page(node.page)
                self._queue.put((name, _encoded(_Header(parent, node.tokens), data)))

    def close(self) -> None:
        """Write what is on its way and stop."""
        self._queue.put(None)
        self._thread.join()

    def _name(self, node: Node) -> str | None:
        """The file of a node; None if it is gone, an adapter's, or the page before has no file."""
        parent = node.parent
        if parent is None or (parent is not self._root and id(parent) not in self._names):
            return None
        return _file_name(self._names.get(id(parent), ""), node.tokens)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            name, data = item
            try:
                if data is None:
                    (self._folder / name).unlink(missing_ok=True)
                else:
                    write_atomic(self._folder / name, data)
            except OSError as error:
                if not self._failed:
                    _LOG.warning("prefix cache: %s cannot be written: %s", self._folder, error)
                self._failed = True

    def _scan(self) -> Iterator[_Stored]:
        for path in sorted(self._folder.iterdir()):
            if path.suffix != _SUFFIX:
                path.unlink(missing_ok=True)  # half a file that a kill left
                continue
            header = _read_header(path)
            if header is None or _file_name(header.parent, header.tokens) != path.name:
                self._refuse(path.name)
            else:
                yield _Stored(path.name, header.parent, header.tokens, path.stat().st_mtime)

    def _data(self, name: str) -> Data | None:
        """The bytes of a page, or None for a file that is not whole."""
        file = (self._folder / name).read_bytes()
        body, digest = file[:-_DIGEST], file[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        begin = len(_MAGIC) + _LENGTH
        size = int.from_bytes(body[len(_MAGIC) : begin], "little")
        return np.frombuffer(body, np.uint8)[begin + size :]

    def _refuse(self, name: str) -> None:
        self.refused += 1
        (self._folder / name).unlink(missing_ok=True)


def _file_name(parent: str, tokens: Tokens) -> str:
    ids = np.array(tokens, np.int64).tobytes()
    return hashlib.sha256(parent.encode() + b"\0" + ids).hexdigest()[:40] + _SUFFIX


def _encoded(header: _Header, data: Data) -> bytes:
    told = msgspec.json.encode(header)
    body = _MAGIC + len(told).to_bytes(_LENGTH, "little") + told + data.tobytes()
    return body + hashlib.sha256(body).digest()


def _read_header(path: Path) -> _Header | None:
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + _LENGTH)
        size = int.from_bytes(start[len(_MAGIC) :], "little")
        if not start.startswith(_MAGIC) or size > _MOST_HEADER:
            return None
        try:
            return msgspec.json.decode(file.read(size), type=_Header)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def _closed(stored: dict[str, _Stored], most: int) -> dict[str, _Stored]:
    """The most recently used pages that fit, with all that they continue, parents first."""
    chosen: dict[str, _Stored] = {}
    for one in sorted(stored.values(), key=lambda s: s.used, reverse=True):
        path: list[_Stored] = []
        at: _Stored | None = one
        while at is not None and at.name not in chosen and at not in path:
            path.append(at)
            at = stored.get(at.parent)
        whole = path and (path[-1].parent == "" or path[-1].parent in chosen)
        if whole and len(chosen) + len(path) <= most:
            chosen |= {found.name: found for found in reversed(path)}
    return chosen
