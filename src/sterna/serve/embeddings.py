"""The route of embedding models: texts in, vectors out, as numbers or as base64 of their bytes."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from sterna.engine.embedder import Text
from sterna.serve.errors import HttpError
from sterna.serve.exchange import Exchange
from sterna.serve.schema import Embedding, EmbeddingList, EmbeddingsRequest, EmbeddingUsage
from sterna.serve.state import State

_REQUEST = msgspec.json.Decoder(EmbeddingsRequest)


async def embeddings(exchange: Exchange, state: State) -> None:
    request = await exchange.read(_REQUEST)
    name, embedder = state.models.embedder(request.model)
    texts, stop = _texts(request.input), threading.Event()
    async with exchange.watched():
        try:
            found = await asyncio.to_thread(embedder.embed, texts, request.dimensions, stop)
        finally:
            stop.set()  # a client that left needs no further step
    tokens = sum(found.tokens)
    await exchange.send_json(
        EmbeddingList(
            data=[
                Embedding(index=i, embedding=_shown(vector, request.encoding_format))
                for i, vector in enumerate(found.vectors)
            ],
            model=name,
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
    )


def _texts(given: str | Sequence[str | int | Sequence[int]]) -> list[Text]:
    """One text, one text's token ids, or several texts of either kind."""
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    if len(ids) == len(given):
        return [ids]
    texts = [item for item in given if not isinstance(item, int)]
    if ids:
        raise HttpError(400, "input mixes token ids with texts; give one or the other", "input")
    return texts


def _shown(vector: NDArray[np.float32], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers
