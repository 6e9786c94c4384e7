"""An engine over the null device with two adapters, "one" and "two"."""

from __future__ import annotations

from typing import Any

import msgspec
from null_model import ByteTokenizer, LineTemplate, manifest

from sterna.base.artifact import AdapterRoom
from sterna.engine.engine import AsyncEngine, Engine
from sterna.engine.options import EngineOptions, SamplingOptions
from sterna.runtime.null import NullExecutable

ROOM = AdapterRoom(count=2, rank=4, modules=("m",))
NAMES = {"one": 0, "two": 1}


def adapted(
    pages: int = 512,
    adapters: dict[str, int] | None = None,
    face: type[Engine] | type[AsyncEngine] = Engine,
    **options: Any,
) -> Any:
    return face.from_parts(
        NullExecutable(msgspec.structs.replace(manifest(), adapters=ROOM), pages),
        ByteTokenizer(),
        LineTemplate(),
        "null",
        SamplingOptions(),
        options=EngineOptions(**{"mode": "server", **options}),
        adapters=NAMES if adapters is None else adapters,
    )
