"""The models of a server by name, loaded before it listens.

In: engines, and embedders. Out: the one that a request names, by its own name or by an adapter's;
without a name the only one of its kind. Knows no HTTP but the status of a name that nobody has, or
that is of the other kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from sterna.engine.embedder import Embedder
from sterna.engine.engine import AsyncEngine
from sterna.serve.errors import HttpError

Model = AsyncEngine | Embedder
M = TypeVar("M", AsyncEngine, Embedder, Model)


class Models(Mapping[str, Model]):
    """Read-only: models neither come nor go while a server runs."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        assert models, "a server without a model"
        self._models = dict(models)
        self._writers = {n: m for n, m in models.items() if isinstance(m, AsyncEngine)}
        self._embedders = {n: m for n, m in models.items() if isinstance(m, Embedder)}
        self._adapted = {a: m for m in self._writers.values() for a in m.adapters}

    @property
    def names(self) -> tuple[tuple[str, str | None], ...]:
        """Every name that a request may give, an adapter's with that of its model."""
        models = ((name, None) for name in self._models)
        writers = self._writers.items()
        return (*models, *((a, name) for name, writer in writers for a in writer.adapters))

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def any(self, name: object) -> tuple[str, Model]:
        """HttpError 404 for a model that is not here, 400 where one must be named."""
        if isinstance(name, str) and name in self._adapted:
            return name, self._adapted[name]
        return self._choose(self._models, name)

    def writer(self, name: object) -> tuple[str, AsyncEngine]:
        """The same of models that write text; 400 for one that embeds."""
        if isinstance(name, str) and name in self._embedders:
            raise HttpError(
                400,
                f"the model {name!r} makes embeddings and writes no text; ask /v1/embeddings",
                "model",
            )
        if isinstance(name, str) and name in self._adapted:
            return name, self._adapted[name]
        return self._choose(self._writers, name)

    def embedder(self, name: object) -> tuple[str, Embedder]:
        """The same of models that embed; 400 for one that writes text."""
        writes = isinstance(name, str) and name in {**self._writers, **self._adapted}
        if writes or not self._embedders:
            named = name if name is not None else next(iter(self._writers))
            raise HttpError(
                400,
                f"the model {named!r} writes text and makes no embeddings; serve an embedding "
                "model",
                "model",
                code="embeddings_not_supported",
            )
        return self._choose(self._embedders, name)

    def _choose(self, among: Mapping[str, M], name: object) -> tuple[str, M]:
        if name is None and len(among) == 1:
            return next(iter(among.items()))
        served = among or self._models
        possible = ", ".join(n for n, parent in self.names if (parent or n) in served)
        if name is None:
            raise HttpError(400, f"model is missing; possible are {possible}", "model")
        if not isinstance(name, str) or name not in among:
            raise HttpError(
                404,
                f"the model {name!r} does not exist here; possible are {possible}",
                "model",
                code="model_not_found",
            )
        return name, among[name]

    def close(self) -> None:
        for model in self._models.values():
            model.close()
