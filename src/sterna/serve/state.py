"""What the routes of one server share, and the table that routes and their documentation are of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sterna.serve.exchange import Exchange
from sterna.serve.metrics import Metrics
from sterna.serve.models import Models
from sterna.serve.options import ServeOptions


@dataclass(slots=True)
class State:
    """`draining`: the server was told to stop and finishes what it has accepted."""

    models: Models
    options: ServeOptions
    metrics: Metrics
    started: int  # seconds since 1970
    draining: bool = False


Answer = Callable[[Exchange, State], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. The OpenAPI document is made of these, so it cannot say something else.

    `chunk`: what an event of the stream holds where the client asks for one. `generates`: it
    occupies an engine, so it counts against `max_requests`.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Answer
    summary: str
    result: Any = None
    request: Any = None
    chunk: Any = None
    text: bool = False
    generates: bool = False
    errors: tuple[int, ...] = field(default=())
