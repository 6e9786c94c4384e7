"""The input line of `sterna chat`: several lines, history, completion of commands.

Out: what the user sent, None when they want to leave. Knows prompt_toolkit, no engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style

from sterna.base.cache import cache_dir
from sterna.base.errors import UsageError
from sterna.cli.commands import COMMANDS, OPTIONS
from sterna.cli.say import colours, styled

_PROMPT = ">>> "
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse ansibrightblack"})


class Terminal:
    """`status` is asked for the line at the bottom of the screen.

    `input` and `output` are for tests; the terminal's own otherwise.
    """

    def __init__(
        self,
        status: Callable[[], str],
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=CommandCompleter(),
            complete_while_typing=True,
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=lambda: [("", f" {status()} ")],
            style=_STYLE,
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
        name, space, rest = text.partition(" ")
        command = COMMANDS.get(name)
        if not space:
            yield from _named(name, {name: command.help for name, command in COMMANDS.items()})
        elif name == "/set":
            word = rest.rpartition(";")[2].lstrip()
            options = {f"{name}=": option.metadata["help"] for name, option in OPTIONS.items()}
            yield from _named(word, options)
        elif command is not None and command.takes_path:
            yield from PathCompleter(expanduser=True).get_completions(
                Document(rest), complete_event
            )


def _named(word: str, choices: Mapping[str, str]) -> Iterator[Completion]:
    for name, meaning in choices.items():
        if name.startswith(word):
            yield Completion(name, -len(word), display_meta=meaning)


def _keys() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
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
