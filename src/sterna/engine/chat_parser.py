"""An answer's text taken apart as it comes: what is thought, what is said, which tools are called.

In: pieces of visible text. Out: `Parsed` pieces. Nothing is given out that further text could turn
into something else, and what comes out does not depend on how the text was cut into pieces. Follows
the marks in reasoning.py and the syntax of tool_syntax.py; grammars see to it that calls are well
formed. Knows no tokens and no wire formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from sterna.engine.reasoning import CLOSE, OPEN, Start
from sterna.engine.tool_syntax import ID_LENGTH, ToolSyntax


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of call number `index`: its name once, whole and first; then its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """What some text turned out to be."""

    thought: str = ""
    speech: str = ""
    calls: list[CallPiece] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.thought or self.speech or self.calls)


class _State(Enum):
    OPENING = auto()  # perhaps a thought begins
    THOUGHT = auto()
    SPEECH = auto()
    NAME = auto()
    ARGUMENTS = auto()
    AFTER = auto()  # what a call ends with
    MORE = auto()  # another call, or the end
    DONE = auto()


class ChatParser:
    """One answer's parser; `tools` is None where nothing is a call.

    White space around thoughts, and between speech and calls, belongs to neither.
    """

    def __init__(self, start: Start, tools: ToolSyntax | None) -> None:
        self._state = {
            Start.SPEECH: _State.SPEECH,
            Start.THOUGHT: _State.THOUGHT,
            Start.EITHER: _State.OPENING,
        }[start]
        self._tools = tools
        self._text = ""  # not given out yet
        self._space = ""  # at the end of what was given out: perhaps between two parts
        self._fresh = True  # nothing of this part was given out
        self._trims = start is Start.THOUGHT  # white space before this part is dropped
        self._calls = 0
        self._object = _Object()
        self._out = Parsed()

    @property
    def thinking(self) -> bool:
        return self._state is _State.THOUGHT

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._calls > 0

    def put(self, text: str) -> Parsed:
        """Take further text; return what is certain by now."""
        self._text += text
        while self._step():
            pass
        return self._take()

    def finish(self) -> Parsed:
        """Return what was held back: there is no more text."""
        if self._state is _State.OPENING:
            self._state = _State.SPEECH
        if self._state in (_State.THOUGHT, _State.SPEECH):
            self._give(self._text)
            if self._state is _State.SPEECH:
                self._out.speech += self._space
        self._text = self._space = ""
        return self._take()

    def _take(self) -> Parsed:
        out, self._out = self._out, Parsed()
        return out

    def _step(self) -> bool:
        """Do what the text suffices for; False: wait for more."""
        match self._state:
            case _State.OPENING:
                return self._opening()
            case _State.THOUGHT:
                return self._thought()
            case _State.SPEECH:
                return self._speech()
            case _State.NAME:
                return self._name()
            case _State.ARGUMENTS:
                return self._arguments()
            case _State.AFTER:
                return self._after()
            case _State.MORE:
                return self._more()
            case _State.DONE:
                self._text = ""
                return False

    def _enter(self, state: _State, *, trims: bool = False) -> bool:
        self._state, self._fresh, self._trims, self._space = state, True, trims, ""
        return True

    def _opening(self) -> bool:
        begun = self._text.lstrip()
        if begun.startswith(OPEN):
            self._text = begun.removeprefix(OPEN)
            return self._enter(_State.THOUGHT, trims=True)
        return False if OPEN.startswith(begun) else self._enter(_State.SPEECH)

    def _thought(self) -> bool:
        return self._until(CLOSE) and self._enter(_State.SPEECH, trims=True)

    def _speech(self) -> bool:
        if self._tools is None:
            self._give(self._text)
            self._text = ""
            return False
        opening = self._tools.begin + self._tools.before_name
        if not self._tools.only_first:
            return self._until(opening) and self._enter(_State.NAME)
        begun = self._text.lstrip() if self._trims else self._text
        if self._fresh and begun.startswith(opening):
            self._text = begun.removeprefix(opening)
            return self._enter(_State.NAME)
        if not (self._fresh and opening.startswith(begun)):
            self._give(self._text)
            self._text = ""
        return False

    def _until(self, mark: str) -> bool:
        """Give out what comes before `mark`; True when it is there, and taken away."""
        before, found, after = self._text.partition(mark)
        if found:
            self._give(before)
            self._text = after
            return True
        kept = _overlap(self._text, mark)
        cut = len(self._text) - kept
        self._give(self._text[:cut])
        self._text = self._text[cut:]
        return False

    def _give(self, text: str) -> None:
        """Give out text of a thought or of speech, but hold back white space at its end."""
        if self._fresh and self._trims:
            text = text.lstrip()
        if not text:
            return
        self._fresh = False
        text = self._space + text
        holds = self._state is _State.THOUGHT or self._tools is not None
        certain = text.rstrip() if holds else text
        self._space = text[len(certain) :]
        if self._state is _State.THOUGHT:
            self._out.thought += certain
        else:
            self._out.speech += certain

    def _name(self) -> bool:
        assert self._tools is not None, "a call without tools"
        name, found, rest = self._text.partition(self._tools.between)
        if not found:
            return False
        self._out.calls.append(CallPiece(self._calls, name))
        self._calls += 1
        self._text, self._object = rest, _Object()
        return self._enter(_State.ARGUMENTS)

    def _arguments(self) -> bool:
        length = self._object.feed(self._text)
        if length:
            self._out.calls.append(CallPiece(self._calls - 1, arguments=self._text[:length]))
        self._text = self._text[length:]
        return self._object.complete and self._enter(_State.AFTER)

    def _after(self) -> bool:
        assert self._tools is not None, "a call without tools"
        wanted = len(self._tools.after)
        if self._tools.before_id is not None:
            wanted += len(self._tools.before_id) + ID_LENGTH
        if len(self._text) < wanted:
            return False
        self._text = self._text[wanted:]
        return self._enter(_State.MORE)

    def _more(self) -> bool:
        assert self._tools is not None, "a call without tools"
        again = self._tools.separator + self._tools.before_name
        if self._text.startswith(again):
            self._text = self._text.removeprefix(again)
            return self._enter(_State.NAME)
        return False if again.startswith(self._text) else self._enter(_State.DONE)


class _Object:
    """Finds the end of a JSON object, given in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False
        self.complete = False

    def feed(self, text: str) -> int:
        """How many of these characters belong to the object."""
        for i, character in enumerate(text):
            if self._quoted:
                self._in_string(character)
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            if self._depth == 0:
                self.complete = True
                return i + 1
        return len(text)

    def _in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` begins with."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
