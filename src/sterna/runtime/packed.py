"""Weights as a library's kernels read them, in a file that a later load maps and has at once.

In: a manifest, the model folder's tensors and the file's path, whose name stands for both. Out: an
array a param. A file that is not whole, or of another layout, is made again; where none can be
kept, weights are packed into memory at each load. It does not know where the cache is.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest, Param
from sterna.base.cache import key
from sterna.runtime.memory import packed_bytes, padded
from sterna.runtime.params import WeightReader, read_param

Arrays = dict[str, NDArray[np.uint8]]  # by the names of params

SMALLEST = 32 << 20  # bytes of weights
_HEAD = 4096
_PIECE = 8 << 20  # bytes: a multiple of a huge page's
_LOG = logging.getLogger("sterna")


def layout(manifest: Manifest) -> str:
    """A hash of how the library wants its weights to lie."""
    params = [(p.name, p.dtype, tuple(p.shape), p.row_tile, p.streams) for p in _own(manifest)]
    return key("packed weights 2", sys.byteorder, repr(params))


def worth_keeping(manifest: Manifest) -> bool:
    """Whether mapping the weights saves more than looking for the file takes."""
    return _bytes(manifest) >= SMALLEST


def _own(manifest: Manifest) -> list[Param]:
    """The model's own weights: adapters are loaded anew each time."""
    return [param for param in manifest.params if not param.adapter]


def _bytes(manifest: Manifest) -> int:
    return sum(padded(packed_bytes(param)) for param in _own(manifest))


def packed_params(
    manifest: Manifest, weights: Mapping[str, WeightReader], path: Path | None
) -> Arrays | None:
    """The weights of every param, in a mapped file at `path`, which is made if it is not there.

    Adapters aside. None without a path, and where no file can be kept. Raises MissingTensor and
    ShapeMismatch as `read_param` does.
    """
    if path is None or not hasattr(os, "posix_fallocate"):
        return None
    total = _HEAD + _bytes(manifest)
    try:
        return _found(path, manifest, total) or _made(path, manifest, weights, total)
    except OSError as error:
        _LOG.warning("packed weights are not kept in %s: %s", path, error.strerror or error)
        return None


def _head(manifest: Manifest, total: int) -> bytes:
    """What a whole file begins with."""
    text = f"Sterna's packed weights\n{layout(manifest)}\n{total} bytes\n"
    return text.encode().ljust(_HEAD, b"\0")


def _found(path: Path, manifest: Manifest, total: int) -> Arrays | None:
    try:
        with path.open("rb") as file:
            whole = os.fstat(file.fileno()).st_size == total
            if not whole or file.read(_HEAD) != _head(manifest, total):
                return None
            memory = mmap.mmap(file.fileno(), total, prot=mmap.PROT_READ)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # advice: what is read from the disk comes in huge pages
        memory.madvise(getattr(mmap, "MADV_HUGEPAGE", mmap.MADV_WILLNEED))
    threading.Thread(target=_touch, args=(memory,), name="sterna-pages", daemon=True).start()
    return _cut(memory, manifest)


def _touch(memory: mmap.mmap) -> None:
    """Read a byte of every page, while the caller does something else.

    The system maps pages one by one as they are read, which would take most of the first step.
    numpy holds no lock meanwhile.
    """
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE].max()


def _made(
    path: Path, manifest: Manifest, weights: Mapping[str, WeightReader], total: int
) -> Arrays:
    """Pack into a file beside `path`, which takes its place once all of it is on the disk.

    It is written in large pieces, not through a mapping: of these Linux keeps huge pages where the
    file system has them (ext4 since 6.16, XFS), which a mapping then gets, and decode reads faster.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = beside.open("xb+", buffering=0)
    try:
        os.posix_fallocate(file.fileno(), 0, total)  # found out now that a disk is full
        pieces = _Pieces(file)
        pieces.write(np.frombuffer(_head(manifest, total), np.uint8))
        for param in _own(manifest):
            packed = np.zeros(padded(packed_bytes(param)), np.uint8)
            read_param(param, weights, packed[: packed_bytes(param)])
            pieces.write(packed)
        pieces.finish()
        arrays = _cut(mmap.mmap(file.fileno(), total, prot=mmap.PROT_READ), manifest)
    except BaseException:
        file.close()
        beside.unlink(missing_ok=True)
        raise
    # The disk takes its time, and the weights can be used meanwhile.
    threading.Thread(target=_keep, args=(file, beside, path)).start()
    return arrays


class _Pieces:
    """A file written from its beginning in pieces of `_PIECE` bytes, whatever comes together."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._piece, self._held = file, bytearray(_PIECE), 0

    def write(self, data: NDArray[np.uint8]) -> None:
        """The bytes after those before. OSError where the disk is full."""
        while len(data):
            part = data[: _PIECE - self._held]
            self._piece[self._held : self._held + len(part)] = part.tobytes()
            self._held += len(part)
            data = data[len(part) :]
            if self._held == _PIECE:
                self.finish()

    def finish(self) -> None:
        """What is still held."""
        rest = memoryview(self._piece)[: self._held]
        while rest:
            rest = rest[self._file.write(rest) :]
        self._held = 0


def _keep(file: BinaryIO, beside: Path, path: Path) -> None:
    try:
        with file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        _LOG.warning("packed weights are not kept in %s: %s", path, error.strerror or error)


def _cut(memory: mmap.mmap, manifest: Manifest) -> Arrays:
    data = np.frombuffer(memory, np.uint8)
    arrays, at = Arrays(), _HEAD
    for param in _own(manifest):
        size = packed_bytes(param)
        arrays[param.name] = data[at : at + size]
        at += padded(size)
    return arrays
