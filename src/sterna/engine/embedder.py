"""Texts to vectors: the face of an embedding model, and how its texts share steps.

In: texts, or their token ids. Out: for each one vector, pooled from its hidden states as the model
was made for. Nothing is kept from call to call, so a text's vector depends on that text alone.
Knows no HTTP; what generates text is `engine.engine`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Model
from sterna.base.errors import DeviceError, RequestError
from sterna.engine.limits import Limits, embedding_limits
from sterna.engine.loader import Resolve, check_device, load_embedding_model
from sterna.engine.options import EngineOptions
from sterna.runtime.executable import Executable, Ints, StepInput
from sterna.runtime.memory import largest_shape
from sterna.text.tokenizer import Tokenizer

Text = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors` is float32 [texts, dimensions], `tokens` their lengths as the model read them."""

    vectors: NDArray[np.float32]
    tokens: tuple[int, ...]


class Embedder:
    """A loaded embedding model. Threads may share it; their steps take turns."""

    def __init__(
        self,
        model: str | Path | None = None,
        model_lib: str | Path | None = None,
        device: str = "auto",
        *,
        options: EngineOptions | None = None,
        name: str | None = None,
        resolve: Resolve,
    ) -> None:
        """`name`: what to call the model instead of its folder's name.

        RequestError for a model that writes text, and for options that only such models have.
        """
        options = options or EngineOptions()
        check_device(device)
        located = resolve(model, model_lib, device)
        executable, limits, tokenizer = load_embedding_model(located, options)
        self._start(executable, limits, tokenizer, name or located.folder.resolve().name)

    @classmethod
    def from_parts(
        cls,
        executable: Executable,
        tokenizer: Tokenizer,
        model_name: str,
        *,
        options: EngineOptions | None = None,
    ) -> Self:
        """An embedder over a model that is already loaded; it closes the executable at its end."""
        embedder = cls.__new__(cls)
        manifest, pages = executable.manifest, executable.num_pages
        limits = embedding_limits(options or EngineOptions(), manifest, pages)
        embedder._start(executable, limits, tokenizer, model_name)
        return embedder

    def _start(
        self, executable: Executable, limits: Limits, tokenizer: Tokenizer, name: str
    ) -> None:
        self.model_name = name
        self.tokenizer = tokenizer
        self.failure: Exception | None = None
        self._executable = executable
        self._limits = limits
        self._turn = threading.Lock()
        self._counters = {"prompt_tokens": 0.0, "steps": 0.0, "step_seconds": 0.0}

    @property
    def context_window(self) -> int:
        """Most tokens of one text."""
        return self._limits.window

    @property
    def dimensions(self) -> int:
        """Of the model's vectors."""
        entry = self._executable.manifest.entries[0]
        return largest_shape(entry.outputs[0], entry)[1]

    def embed(
        self,
        texts: Sequence[Text],
        dimensions: int | None = None,
        stop: threading.Event | None = None,
    ) -> Embedded:
        """The vectors of `texts`, cut to their first `dimensions` where that is given.

        Once `stop` is set no further step begins. RequestError for a text that is empty or longer
        than the model takes, for token ids that do not exist, and when it was stopped.
        """
        width = self._width(dimensions)
        ids = [self._ids(place, text) for place, text in enumerate(texts)]
        vectors = np.empty((len(ids), width), np.float32)
        done = 0
        for group in self._groups(ids):
            with self._turn:
                sums = self._pooled(group, stop)
            for own in sums:
                vectors[done] = _finished(own[:width], self._model.normalize)
                done += 1
        return Embedded(vectors, tuple(map(len, ids)))

    def metrics(self) -> dict[str, float]:
        """Counters since the start."""
        return dict(self._counters)

    def close(self) -> None:
        """Free the model. Safe to call twice; waits for the step that runs."""
        with self._turn:
            self._executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _model(self) -> Model:
        return self._executable.manifest.model

    def _width(self, asked: int | None) -> int:
        if asked is not None and not 1 <= asked <= self.dimensions:
            raise RequestError(
                f"dimensions is {asked}, possible are 1 to {self.dimensions}", "dimensions"
            )
        return asked or self.dimensions

    def _ids(self, place: int, text: Text) -> list[int]:
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        if not ids or text == "":
            raise RequestError(f"text {place} of the input is empty", "input")
        if len(ids) > self.context_window:
            raise RequestError(
                f"text {place} of the input has {len(ids)} tokens, the model takes up to "
                f"{self.context_window}",
                "input",
            )
        size = self._model.vocab_size
        for token in ids:
            if not 0 <= token < size:
                raise RequestError(
                    f"text {place} of the input has the id {token}, possible are 0 to {size - 1}",
                    "input",
                )
        return ids

    def _groups(self, ids: list[list[int]]) -> Iterator[list[list[int]]]:
        """Texts that share a step; one longer than a step is a group of its own."""
        group: list[list[int]] = []
        tokens = pages = 0
        for text in ids:
            own = self._pages(len(text))
            full = len(group) == self._limits.max_sequences
            if group and (
                full
                or tokens + len(text) > self._limits.chunk
                or pages + own > self._limits.num_pages
            ):
                yield group
                group, tokens, pages = [], 0, 0
            group.append(text)
            tokens, pages = tokens + len(text), pages + own
        if group:
            yield group

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._limits.page_size)

    def _pooled(
        self, group: list[list[int]], stop: threading.Event | None
    ) -> list[NDArray[np.float64]]:
        """The state that is each text's vector, or the mean of its states."""
        found = [np.zeros(self.dimensions) for _ in group]
        for start in range(0, max(map(len, group)), self._limits.chunk):
            if stop is not None and stop.is_set():
                raise RequestError("the request was cancelled")
            parts = [text[start : start + self._limits.chunk] for text in group]
            rows = [self._rows(len(part)) for part in parts]
            states = self._step(parts, start, rows)
            at = 0
            for own, wanted in zip(found, rows, strict=True):
                part = states[at : at + len(wanted)].sum(axis=0, dtype=np.float64)
                at += len(wanted)
                if self._model.pooling == "mean":
                    own += part
                elif self._model.pooling == "last" or start == 0:
                    own[:] = part
        if self._model.pooling == "mean":
            return [own / len(text) for own, text in zip(found, group, strict=True)]
        return found

    def _rows(self, count: int) -> range:
        """Which of the next `count` tokens' states are pooled."""
        if self._model.pooling == "mean":
            return range(count)
        return range(1) if self._model.pooling == "cls" else range(count - 1, count)

    def _step(self, parts: list[list[int]], start: int, rows: list[range]) -> NDArray[np.float32]:
        ends = np.cumsum([0, *map(len, parts)])
        pages = np.cumsum([0, *(self._pages(start + len(part)) for part in parts)])
        wanted = [at + row for at, own in zip(ends.tolist(), rows, strict=False) for row in own]
        begun = time.perf_counter()
        try:
            states = self._executable.step(
                StepInput(
                    tokens=_ints([token for part in parts for token in part]),
                    positions=_ints([start + i for part in parts for i in range(len(part))]),
                    seq_indptr=_ints(ends),
                    page_indptr=_ints(pages),
                    page_table=_ints(range(pages[-1])),
                    logit_rows=_ints(wanted),
                )
            )
        except DeviceError as error:
            self.failure = error
            raise
        self._counters["step_seconds"] += time.perf_counter() - begun
        self._counters["steps"] += 1
        self._counters["prompt_tokens"] += int(ends[-1])
        return states


def _finished(vector: NDArray[np.float64], normalize: bool) -> NDArray[np.float64]:
    """Of length 1 where the model's are."""
    length = float(np.sqrt((vector * vector).sum()))
    return vector / length if normalize and length > 0 else vector


def _ints(values: object) -> Ints:
    return np.asarray(values, dtype=np.int32)
