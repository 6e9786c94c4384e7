"""The input line of `sterna chat`: several lines, history, completion of commands.

Out: what the user sent, None when they want to leave. Knows prompt_toolkit, no engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output

from sterna.base.cache import cache_dir
from sterna.base.errors import UsageError
from sterna.cli.commands import COMMANDS, OPTION_NAMES
from sterna.cli.say import colours, styled

_PROMPT = ">>> "


class Terminal:
    """`input` and `output` are for tests; the terminal's own otherwise."""

    def __init__(self, input: Input | None = None, output: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=CommandCompleter(),
            complete_while_typing=True,
            multiline=True,
            prompt_continuation="... ",
            key_bindings=_keys(),
            color_depth=None if colours(sys.stdout) else ColorDepth.DEPTH_1_BIT,
            reserve_space_for_menu=4,
            input=input,
            output=output,
        )

    def read(self) -> str | None:
        """The next message; Ctrl-C clears the line, Ctrl-D on an empty one leaves."""
        while True:
            try:
                return self._session.prompt(ANSI(styled(_PROMPT, "cyan", sys.stdout)))
            except KeyboardInterrupt:
                print("Ctrl-D or /exit leaves")
            except EOFError:
                return None


class CommandCompleter(Completer):
    """Completes /commands, and options after /set; never what is said to the model."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, rest = text.partition(" ")
        if not space:
            for name, what in COMMANDS.items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=what)
        elif command == "/set":
            word = rest.rpartition(";")[2].lstrip()
            for name in OPTION_NAMES:
                if name.startswith(word):
                    yield Completion(f"{name}=", -len(word))


def _keys() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """What was sent before, in the cache and for this user's eyes only; in memory if it must."""
    try:
        path = cache_dir("history") / "chat"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
    except (OSError, UsageError):
        return InMemoryHistory()
    return FileHistory(str(path))
