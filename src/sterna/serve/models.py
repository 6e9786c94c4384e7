"""The models of a server by name, loaded before it listens.

In: engines. Out: the engine that a request names; without a name the only one there is. Knows no
HTTP but the status of a name that nobody has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sterna.engine.engine import AsyncEngine
from sterna.serve.errors import HttpError


class Models(Mapping[str, AsyncEngine]):
    """Read-only: models neither come nor go while a server runs."""

    def __init__(self, engines: Mapping[str, AsyncEngine]) -> None:
        assert engines, "a server without a model"
        self._engines = dict(engines)

    def __getitem__(self, name: str) -> AsyncEngine:
        return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    def choose(self, name: object) -> tuple[str, AsyncEngine]:
        """HttpError 404 for a model that is not here, 400 where one must be named."""
        if name is None and len(self._engines) == 1:
            return next(iter(self._engines.items()))
        possible = ", ".join(self._engines)
        if name is None:
            raise HttpError(400, f"model is missing; possible are {possible}", "model")
        if not isinstance(name, str) or name not in self._engines:
            raise HttpError(
                404,
                f"the model {name!r} does not exist here; possible are {possible}",
                "model",
                code="model_not_found",
            )
        return name, self._engines[name]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
