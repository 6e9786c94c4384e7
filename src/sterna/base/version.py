"""The version (the one of `pyproject.toml`), and the state of the source files for cache keys."""

import functools
from collections.abc import Iterable
from pathlib import Path

__version__ = "0.1.0"


@functools.cache
def source_state(*rooms: str) -> tuple[str, ...]:
    """The version and the state of these rooms' files: for cache keys.

    A checkout changes without its version changing; a stale result must never be found.
    """
    root = Path(__file__).parents[1]
    files = sorted(file for room in rooms for file in _files(root / room))
    return __version__, *(file_state(file, file.relative_to(root).as_posix()) for file in files)


def file_state(path: Path, name: str) -> str:
    """Name, size and time of change of a file."""
    stat = path.stat()
    return f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _files(path: Path) -> Iterable[Path]:
    kinds = (".py", ".h", ".json")
    every = path.rglob("*") if path.is_dir() else [path]
    return (file for file in every if file.suffix in kinds and file.is_file())
