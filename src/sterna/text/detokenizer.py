"""Text as it is generated: ids in, text out, piece by piece.

`StreamDecoder` gives the text of a growing list of ids, never half a character, and in the end
exactly what `Tokenizer.decode` gives for the whole list. `StopStrings` cuts that text at the first
stop string, wherever token borders fall. Neither knows requests, models or end tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sterna.base.errors import RequestError
from sterna.text.decoding import stages
from sterna.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decode ids incrementally. Amortised O(1) a token; one object a sequence.

    Invariant: the outputs of all `put` calls and of `finish`, concatenated, equal
    `tokenizer.decode(all_ids, skip_special_tokens=skip_special_tokens)`, with those special tokens
    besides that are in `shown`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._skip = skip_special_tokens
        self._stages = stages(tokenizer.decoder_steps)

    def put(self, ids: Iterable[int]) -> str:
        """Take further ids; return the text that is certain by now."""
        tokens = [token for i in ids if (token := self._visible(i)) is not None]
        for stage in self._stages:
            tokens = stage.put(tokens)
        return "".join(tokens)

    def finish(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        tokens: list[str] = []
        for stage in self._stages:
            tokens = stage.put(tokens) + stage.finish()
        return "".join(tokens)

    def _visible(self, token_id: int) -> str | None:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or not self._skip or token_id in self._shown:
            return token
        return None if self._tokenizer.is_special(token) else token


class StopStrings:
    """Cut a stream of text before the stop string that is complete first.

    Where two become complete at the same character, the longer one counts. The result does not
    depend on how the text is divided into `put` calls. Runs one Knuth-Morris-Pratt automaton a
    stop string, so the cost is O(characters x stops) whatever the strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise RequestError("a stop string may not be empty: leave it out")
        self._stops = tuple(stops)
        self._failures = [_failure(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.stopped = False

    def put(self, text: str) -> tuple[str, bool]:
        """Take further text; return (text certain to come before any stop, stop reached)."""
        if self.stopped:
            return "", True
        start, text = len(self._held), self._held + text
        for end in range(start, len(text)):
            if length := self._advance(text[end]):
                self.stopped, self._held = True, ""
                return text[: end + 1 - length], True
        cut = len(text) - max(self._matched, default=0)
        self._held = text[cut:]
        return text[:cut], False

    def finish(self) -> str:
        """Return what was held back as the possible beginning of a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Feed one character to every automaton; the length of the stop it completes, or 0."""
        complete = 0
        for i, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            n = self._matched[i]
            while n and stop[n] != character:
                n = failure[n - 1]
            self._matched[i] = n = n + (stop[n] == character)
            complete = max(complete, n if n == len(stop) else 0)
        return complete


def _failure(stop: str) -> list[int]:
    """KMP: for each prefix, the length of its longest proper border."""
    table, n = [0] * len(stop), 0
    for i in range(1, len(stop)):
        while n and stop[n] != stop[i]:
            n = table[n - 1]
        n += stop[n] == stop[i]
        table[i] = n
    return table
