"""The routes that generate nothing: models, tokens, health, metrics, version."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from sterna.base.errors import RequestError
from sterna.base.version import __version__
from sterna.engine.engine import AsyncEngine
from sterna.serve.errors import HttpError
from sterna.serve.exchange import Exchange
from sterna.serve.metrics import CONTENT_TYPE
from sterna.serve.models import Model
from sterna.serve.schema import (
    DetokenizeRequest,
    DetokenizeResult,
    Health,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResult,
    Version,
)
from sterna.serve.state import State

_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def list_models(exchange: Exchange, state: State) -> None:
    cards = [_card(name, state) for name, _ in state.models.names]
    await exchange.send_json(ModelList(data=cards))


async def retrieve_model(exchange: Exchange, state: State) -> None:
    name, _ = state.models.any(exchange.scope["path_params"]["model"])
    await exchange.send_json(_card(name, state))


def _card(name: str, state: State) -> ModelCard:
    _, engine = state.models.any(name)
    parent = dict(state.models.names)[name]
    window = engine.context_window
    return ModelCard(id=name, created=state.started, max_model_len=window, parent=parent)


async def tokenize(exchange: Exchange, state: State) -> None:
    request = await exchange.read(_TOKENIZE)
    choose = state.models.any if request.messages is None else state.models.writer
    _, engine = choose(request.model)
    ids = await asyncio.to_thread(_ids, request, engine)
    pieces = [engine.tokenizer.id_to_token(i) or "" for i in ids]
    await exchange.send_json(
        TokenizeResult(
            count=len(ids),
            max_model_len=engine.context_window,
            tokens=ids,
            token_strs=pieces if request.return_token_strs else None,
        )
    )


def _ids(request: TokenizeRequest, engine: Model) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise HttpError(400, "give either prompt or messages", "prompt")
    if request.messages is not None:
        assert isinstance(engine, AsyncEngine), "chosen among those that write"
        return engine.chat_ids(request.messages, request.tools)
    if request.tools is not None:
        raise HttpError(400, "tools belong to messages, not to a prompt", "tools")
    return list(
        engine.tokenizer.encode(
            request.prompt or "",
            add_special_tokens=request.add_special_tokens,
            allow_special=True,
        )
    )


async def detokenize(exchange: Exchange, state: State) -> None:
    request = await exchange.read(_DETOKENIZE)
    _, engine = state.models.any(request.model)
    size = engine.tokenizer.vocab_size
    for token in request.tokens:
        if token >= size:
            raise RequestError(f"tokens has the id {token}, possible are 0 to {size - 1}", "tokens")
    decode = partial(engine.tokenizer.decode, request.tokens, skip_special_tokens=False)
    text = await asyncio.to_thread(decode)
    await exchange.send_json(DetokenizeResult(prompt=text))


async def live(exchange: Exchange, state: State) -> None:
    """Whether restarting the server would help: an engine that stopped stays so."""
    await _health(exchange, _failed(state) or Health(status="ok"))


async def ready(exchange: Exchange, state: State) -> None:
    """Whether a new request would be answered."""
    draining = Health(status="draining", message="the server is stopping")
    await _health(exchange, _failed(state) or (draining if state.draining else Health(status="ok")))


def _failed(state: State) -> Health | None:
    for name, engine in state.models.items():
        if (failure := engine.failure) is not None:
            return Health(status="failed", message=f"{name}: {failure}")
    return None


async def _health(exchange: Exchange, health: Health) -> None:
    await exchange.send_json(health, 200 if health.status == "ok" else 503)


async def metrics(exchange: Exchange, state: State) -> None:
    page = state.metrics.page(state.models).encode()
    await exchange.send_bytes(page, ((b"content-type", CONTENT_TYPE),))


async def version(exchange: Exchange, state: State) -> None:
    await exchange.send_json(Version(version=__version__))
