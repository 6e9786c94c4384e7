"""What goes to the terminal: text made harmless, colour where it is wanted, sizes people read.

Knows nothing of verbs. Text from models and files may hold escape sequences that move the cursor
or rename the window; none of them reaches a terminal.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from typing import TextIO

_WEIGHTS = {"bold": "1", "dim": "2"}
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_CONTROL = ("Cc", "Cs")
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder what is around


def harmless(text: str) -> str:
    """The text with control characters written out; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _acts(c) else _written_out(c) for c in text)


def one_line(text: str) -> str:
    """A message as a single harmless line."""
    return harmless(" ".join(text.split()))


def wrapped(text: str) -> str:
    """Lines that are wider than the terminal cut between words."""
    width = max(20, shutil.get_terminal_size().columns)
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def styles(stream: TextIO) -> bool:
    """Whether this stream is a terminal that can show text in bold, or draw it anew."""
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def colours(stream: TextIO) -> bool:
    """Whether this stream may be coloured as well (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and styles(stream)


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in a style, where the stream shows it: NO_COLOR takes the colours."""
    shown = {**(_WEIGHTS if styles(stream) else {}), **(_COLOURS if colours(stream) else {})}
    return f"\x1b[{shown[style]}m{text}\x1b[0m" if style in shown else text


def note(text: str) -> None:
    """Tell the user something that is not the result: on stderr, dimmed."""
    print(styled(one_line(text), "dim", sys.stderr), file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes as people read them: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _CONTROL or character in _BIDI


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
