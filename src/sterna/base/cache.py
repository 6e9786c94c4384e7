"""The cache folder: bytes that can be made again, found by the hash of all that shaped them.

Lies in `$STERNA_CACHE`, else `$XDG_CACHE_HOME/sterna`, else `~/.cache/sterna`, one subfolder a
kind ("kernels", "models", ...). Writing is atomic, so a reader sees a whole entry or none. Knows
nothing of what the bytes mean; a kind may also hold folders that someone else writes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from sterna.base.errors import UsageError

_MARK = ".sterna-cache"  # in every folder that is ours to clear, whatever STERNA_CACHE names


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of the cache. `mtime` is in seconds since the epoch."""

    kind: str
    path: Path
    bytes: int
    mtime: float


def cache_root() -> Path:
    """The folder of all kinds. It need not exist."""
    if own := os.environ.get("STERNA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "sterna"


def cache_dir(kind: str) -> Path:
    """The folder of one kind, made if it is not there; UsageError when it cannot be."""
    folder = cache_root() / _checked(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise UsageError(
            f"the cache folder {folder} cannot be made ({error.strerror}); "
            "set STERNA_CACHE to a folder that can be written"
        ) from None
    return folder


def key(*parts: str | bytes) -> str:
    """A hash of the parts (64 hex digits); ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"s" if isinstance(part, str) else b"b")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def lookup(kind: str, key: str) -> bytes | None:
    """What was stored under the key, or None."""
    try:
        return (cache_root() / _checked(kind) / _checked(key)).read_bytes()
    except OSError:
        return None


def store(kind: str, key: str, data: bytes) -> Path:
    """Keep `data` under the key, atomically; the file it lies in now."""
    path = cache_dir(kind) / _checked(key)
    write_atomic(path, data)
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file beside `path`, then rename: a kill leaves the old file or the new one."""
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def entries() -> list[Entry]:
    """Everything in the cache, the largest first."""
    found: list[Entry] = []
    for folder in _folders(cache_root()):
        for path in _contents(folder):
            size, mtime = _measure(path)
            found.append(Entry(folder.name, path, size, mtime))
    return sorted(found, key=lambda entry: (-entry.bytes, entry.path))


def clear(kind: str | None = None) -> int:
    """Remove one kind, or all; the number of bytes freed."""
    wanted = None if kind is None else _checked(kind)
    freed = 0
    for folder in _folders(cache_root()):
        if wanted in (None, folder.name):
            freed += sum(_measure(path)[0] for path in _contents(folder))
            shutil.rmtree(folder)
    return freed


def _checked(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise UsageError(f"{name!r} cannot name something in the cache: it must be one plain name")
    return name


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if (path / _MARK).is_file())


def _contents(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != _MARK]


def _measure(path: Path) -> tuple[int, float]:
    """Bytes in a file or folder and when it last changed; files that vanish count nothing."""
    total, newest = 0, 0.0
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            stat = file.lstat()
        except OSError:
            continue
        total += 0 if file.is_dir() else stat.st_size
        newest = max(newest, stat.st_mtime)
    return total, newest
