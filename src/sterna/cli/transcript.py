"""A conversation as a file: what /save writes and /load reads.

In: a Conversation, or a path. Out: one JSON object with the messages, the system prompt and the
options that were set. A file from elsewhere is checked before anything is taken from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from sterna.base.cache import write_atomic
from sterna.base.errors import RequestError, UsageError
from sterna.cli.conversation import Conversation
from sterna.engine.options import SamplingOptions, override

MAX_BYTES = 16 << 20


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str


class Transcript(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="conversation"):
    """Questions and answers take turns, a question first and an answer last."""

    model: str
    messages: tuple[Said, ...]
    system: str | None = None
    options: dict[str, Any] = {}


def save(conversation: Conversation, path: Path) -> None:
    """Write the conversation; UsageError where a file is in the way that is no conversation."""
    if path.exists():
        try:
            read(path)
        except UsageError:
            raise UsageError(f"{path} exists and is no conversation; choose another name") from None
    messages = tuple(Said(m["role"], m["content"]) for m in conversation.messages)
    name, options = conversation.engine.model_name, conversation.options
    data = msgspec.json.encode(Transcript(name, messages, conversation.system, options))
    write_atomic(path, msgspec.json.format(data) + b"\n")


def read(path: Path) -> Transcript:
    """A saved conversation; UsageError says what is wrong with the file."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    if data is None:
        raise UsageError(f"{path} has {size:,} bytes, possible are {MAX_BYTES:,}")
    try:
        return _checked(msgspec.json.decode(data, type=Transcript))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError) as error:
        raise UsageError(f"{path} is no saved conversation: {error}") from None


def _checked(found: Transcript) -> Transcript:
    """RequestError for what no /save writes."""
    override(SamplingOptions(), found.options)
    roles = [said.role for said in found.messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise RequestError("questions and answers must take turns")
    return found


def resume(conversation: Conversation, found: Transcript) -> None:
    """Put the conversation where the saved one was."""
    conversation.messages = [{"role": m.role, "content": m.content} for m in found.messages]
    conversation.system = found.system
    conversation.options = dict(found.options)
    conversation.turns.clear()
