"""Write beside and rename: a kill at any moment leaves the old file or folder, or the new one.

In: a target path and the work that fills its replacement. Out: the replacement under the target's
name. A folder cannot be renamed over a full one, so for folders the old one first steps aside; the
readers call `recover`, which puts it back if the writer died between the two renames.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import IO

from sterna.base.errors import CheckpointError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE_SECONDS = 24 * 3600.0  # where folders cannot be locked, age tells the abandoned ones
_SWAP_SECONDS = 5.0


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a failed write into one sentence that says what became of `target`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            reason = "the disk is full; free some space and run it again"
        else:
            reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot write {target}: {reason} (what was there before is unchanged)"
        ) from error


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the name `path` when the block ends well, and vanishes if not."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "w+b") as file:
                yield file
                sync(file)
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Push a file's bytes to the disk; a rename must not overtake them."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Push a folder's names to the disk, where the system can do that."""
    handle = _open_folder(folder)
    if handle is not None:
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _open_folder(folder: Path) -> int | None:
    if fcntl is None:
        return None
    return os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def write_file(path: Path, content: bytes | Path) -> None:
    """Write bytes, or a copy of another file, and push them to the disk."""
    with open(path, "wb") as file:
        if isinstance(content, Path):
            with open(content, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        else:
            file.write(content)
        sync(file)


def replace_files(
    folder: Path, contents: Mapping[str, bytes | Path], removed: Container[str] = ()
) -> None:
    """Write several files of `folder` at one stroke and remove others; the rest stays.

    A kill leaves all of the old files or all of the new ones. Raises CheckpointError where the
    disk refuses.
    """
    with disk_errors(folder):
        partial = PartialFolder(folder)
        try:
            for name, content in contents.items():
                write_file(partial.path / name, content)
            if folder.is_dir():
                carry_over(folder, partial.path, lambda name: name in removed)
            partial.swap_in()
        except BaseException:
            partial.discard()
            raise


class PartialFolder:
    """A locked sibling `.<name>.partial-<pid>` of `target`, which `swap_in` puts in its place.

    The lock, not the process id, tells a living writer from a dead one: ids come again.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.partial-{os.getpid()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        _sweep(target)
        try:
            self._lock = _make_locked(self.path)
        except FileExistsError:
            raise UsageError(f"{target} is already being written by this process") from None

    def swap_in(self) -> None:
        """Give the folder the target's name; what had it before is removed after."""
        aside = self.target.with_name(f".{self.target.name}.old-{os.getpid()}")
        sync_folder(self.path)
        for attempt in range(3):
            if self.target.exists():
                os.rename(self.target, aside)
            try:
                os.rename(self.path, self.target)
                break
            except OSError:
                # Someone made the target anew in between: step it aside again, or give it back.
                if attempt == 2 or not self.target.exists():
                    _give_back(aside, self.target)
                    raise
                shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # the new folder is there and whole, come what may
            sync_folder(self.target.parent)
        shutil.rmtree(aside, ignore_errors=True)
        self._unlock()

    def discard(self) -> None:
        """Remove the folder; the target stays as it is."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _make_locked(path: Path) -> int | None:
    """Make a folder and take its lock before a sweeping process can mistake it for litter."""
    while True:
        path.mkdir()
        try:
            handle = _open_folder(path)
        except FileNotFoundError:
            continue  # swept away between the two calls
        if handle is None:
            return None
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink > 0 and path.exists():
            return handle
        os.close(handle)


def recover(target: Path) -> None:
    """Put back the folder that a killed writer had moved aside, if `target` is missing."""
    deadline = time.monotonic() + _SWAP_SECONDS
    while not target.exists():
        asides = _siblings(target, "old")
        if not asides:
            return
        if time.monotonic() > deadline or all(map(_abandoned, _siblings(target, "partial"))):
            _give_back(max(asides, key=lambda path: path.stat().st_mtime), target)
            return
        time.sleep(0.01)


def _give_back(aside: Path, target: Path) -> None:
    try:
        os.rename(aside, target)
    except OSError:
        if aside.exists() and not target.exists():
            raise  # otherwise another process was quicker, which is as good


def _sweep(target: Path) -> None:
    """Remove what dead writers left: half-written folders, and old ones already replaced."""
    partials = _siblings(target, "partial")
    for path in partials:
        with _claim(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)
    if target.exists() and all(map(_abandoned, partials)):
        for path in _siblings(target, "old"):
            shutil.rmtree(path, ignore_errors=True)


def _siblings(target: Path, kind: str) -> list[Path]:
    prefix = f".{target.name}.{kind}-"
    if not target.parent.is_dir():
        return []
    found = [path for path in target.parent.iterdir() if path.name.startswith(prefix)]
    return [path for path in found if path.name[len(prefix) :].isdigit() and path.is_dir()]


def _abandoned(partial: Path) -> bool:
    with _claim(partial) as free:
        return free


@contextlib.contextmanager
def _claim(partial: Path) -> Iterator[bool]:
    """Hold the lock of a half-written folder for a block; False if a living writer has it."""
    handle = None
    try:
        handle = _open_folder(partial)
        free = _is_old(partial) if handle is None else _try_lock(handle)
    except FileNotFoundError:
        free = True
    try:
        yield free
    finally:
        if handle is not None:
            os.close(handle)


def _is_old(partial: Path) -> bool:
    return time.time() - partial.stat().st_mtime > _STALE_SECONDS


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def carry_over(old: Path, new: Path, replaced: Callable[[str], bool]) -> None:
    """Give `new` all that `old` has and it lacks, but for `replaced` names; links cost nothing."""
    for path in old.iterdir():
        if replaced(path.name) or (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(new / path.name))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
