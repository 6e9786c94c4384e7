"""The application: the table of routes, and what holds around every one of them.

In: engines and options. Out: an ASGI application. Whatever a route raises becomes an answer in
OpenAI's shape; a stranger sees no traceback, and the log sees every mistake of our own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion
from sterna.engine.api_request import ChatRequest, CompletionRequest
from sterna.serve import embeddings, generate, page, plain, responses, responses_schema, schema
from sterna.serve.errors import HttpError, body_of, status_of
from sterna.serve.exchange import Exchange, Gone, told
from sterna.serve.guard import Guard
from sterna.serve.metrics import Metrics
from sterna.serve.models import Model, Models
from sterna.serve.openapi import document
from sterna.serve.options import ServeOptions
from sterna.serve.reply import ENCODER, JSON, Application, Receive, Scope, Send
from sterna.serve.state import Operation, State

LOG = logging.getLogger("sterna.serve")
LEFT = 499  # nginx's number for a client that left; it is counted, never sent

OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        generate.chat_completions,
        "Answer a conversation.",
        request=ChatRequest,
        result=ChatCompletion,
        chunk=ChatCompletionChunk,
        generates=True,
    ),
    Operation(
        "POST",
        "/v1/completions",
        generate.completions,
        "Continue one or more prompts.",
        request=CompletionRequest,
        result=Completion,
        chunk=Completion,
        generates=True,
    ),
    Operation(
        "POST",
        "/v1/responses",
        responses.responses,
        "Answer as items and typed events.",
        request=responses_schema.ResponsesRequest,
        result=responses_schema.ResponseObject,
        chunk=responses_schema.StreamEvent,
        generates=True,
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        embeddings.embeddings,
        "Vectors of one or more texts.",
        request=schema.EmbeddingsRequest,
        result=schema.EmbeddingList,
        generates=True,
    ),
    Operation("GET", "/v1/models", plain.list_models, "The models served.", schema.ModelList),
    Operation("GET", "/v1/models/{model}", plain.retrieve_model, "One of them.", schema.ModelCard),
    Operation(
        "POST",
        "/tokenize",
        plain.tokenize,
        "A text or a conversation as token ids.",
        schema.TokenizeResult,
        schema.TokenizeRequest,
    ),
    Operation(
        "POST",
        "/detokenize",
        plain.detokenize,
        "Token ids as text.",
        schema.DetokenizeResult,
        schema.DetokenizeRequest,
    ),
    Operation("GET", "/health", plain.ready, "As /health/ready.", schema.Health),
    Operation("GET", "/health/live", plain.live, "Whether the engines still run.", schema.Health),
    Operation("GET", "/health/ready", plain.ready, "Whether requests are accepted.", schema.Health),
    Operation("GET", "/metrics", plain.metrics, "Counters for Prometheus.", text=True),
    Operation("GET", "/version", plain.version, "Sterna's version.", schema.Version),
)


class App:
    """The whole server but its socket. `state.draining` may be set from outside."""

    def __init__(self, engines: Mapping[str, Model], options: ServeOptions) -> None:
        models = Models(engines)
        self.state = State(models, options, Metrics(), int(time.time()))
        self._app = Guard(_routes(self.state), options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Endpoint:
    """One route as an ASGI application."""

    def __init__(self, operation: Operation, state: State) -> None:
        self._operation = operation
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, operation = self._state, self._operation
        exchange = Exchange(scope, receive, send, state.options.max_body)
        metrics = state.metrics
        metrics.open += 1
        try:
            if operation.generates and metrics.open > state.options.max_requests:
                raise HttpError(
                    503,
                    f"the server is busy with {state.options.max_requests} requests; try later",
                    code="overloaded",
                    headers=((b"retry-after", b"1"),),
                )
            await operation.answer(exchange, state)
        except asyncio.CancelledError as error:  # the client left, or the grace time is over
            if not exchange.gone and exchange.status == 0:
                await exchange.send_error(told(error))
        except Gone:
            pass
        except RecursionError:
            await _fail(exchange, HttpError(400, "the body is nested too deeply"))
        except Exception as error:
            await _fail(exchange, error)
        finally:
            metrics.open -= 1
            metrics.answered(operation.path, exchange.status or LEFT)


async def _fail(exchange: Exchange, error: Exception) -> None:
    if status_of(error) >= 500 and not isinstance(error, HttpError):
        LOG.error("%s: %s", exchange.scope["path"], error, exc_info=error)
    if exchange.status == 0:
        await exchange.send_error(error)


def _routes(state: State) -> Application:
    shown = [*OPERATIONS, *(page.operations() if state.options.ui else ())]
    routes = [
        Route(_converted(operation.path), Endpoint(operation, state), methods=[operation.method])
        for operation in shown
    ]
    openapi = ENCODER.encode(document(OPERATIONS))

    async def describe(exchange: Exchange, state: State) -> None:
        await exchange.send_bytes(openapi, ((b"content-type", JSON),))

    own = Operation("GET", "/openapi.json", describe, "This document.")
    routes.append(Route(own.path, Endpoint(own, state), methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    return app


def _converted(path: str) -> str:
    """Names of models may have slashes in them."""
    return path.replace("{model}", "{model:path}")


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these alone"
    if error.status_code == 405:
        what = f"{request.method} is not possible for {request.url.path}"
    else:
        what = f"there is nothing at {request.url.path}; /openapi.json lists what there is"
    refused = HttpError(error.status_code, what)
    return Response(
        ENCODER.encode(body_of(refused)), error.status_code, error.headers, JSON.decode()
    )
