"""Names that come out of a stranger's file, before they may become a path.

In: a value from JSON. Out: a plain file name that stays in its folder, or UnsafeFile. Links that
a folder itself holds are not looked at: the hub's cache is made of them.
"""

from __future__ import annotations

from sterna.base.errors import UnsafeFile


def plain_file_name(name: object, source: object) -> str:
    """Return `name` if it names a file directly inside a folder; `source` says who named it."""
    if not isinstance(name, str):
        raise UnsafeFile(f"{source} gives {name!r} as a file name; it must be a string")
    if not _is_plain(name):
        raise UnsafeFile(
            f"{source} names the file {name[:200]!r}; only plain names of files "
            "in the same folder are read"
        )
    return name


def _is_plain(name: str) -> bool:
    # The colon is a drive or a stream on Windows; folders are meant to be carried around.
    unsafe = any(c in '/\\:*?"<>|' or not c.isprintable() for c in name)
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255 and name not in (".", "..") and not unsafe
    )
