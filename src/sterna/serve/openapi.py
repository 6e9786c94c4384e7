"""The OpenAPI 3.2 document of the table of routes, made from the very types that decode requests.

In: operations. Out: plain data. It cannot drift from the server: there is nothing to keep in step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sterna.base.version import __version__
from sterna.serve.errors import ErrorBody
from sterna.serve.state import Operation

_REF = "#/components/schemas/{name}"
_END = "[DONE]"
_STREAM = "Server-sent events; with `stream: true`. Each holds one of these; the last, [DONE]."


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Every path with its parameters, body, results and errors."""
    types = list(dict.fromkeys(_types(operations)))
    references, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas = dict(zip(types, references))
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _one(operation, schemas)
    key = {"type": "http", "scheme": "bearer", "description": "one of the server's --api-key"}
    return {
        "openapi": "3.2.0",
        "info": {"title": "Sterna", "version": __version__, "summary": "OpenAI's API, locally."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    yield ErrorBody
    for operation in operations:
        yield from filter(None, (operation.request, operation.result, operation.chunk))


def _one(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.answer.__name__ + re.sub(r"\W+", "_", operation.path),
        "responses": _responses(operation, schemas),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.request is not None:
        body = {"application/json": {"schema": schemas[operation.request]}}
        described["requestBody"] = {"required": True, "content": body}
    return described


def _responses(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.result is not None:
        content["application/json"] = {"schema": schemas[operation.result]}
    if operation.chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event(schemas[operation.chunk])}
    if operation.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    failed = {"application/json": {"schema": schemas[ErrorBody]}}
    responses: dict[str, Any] = {
        "4XX": {"description": "The request was refused.", "content": failed},
        "5XX": {"description": "The server could not answer.", "content": failed},
    }
    if content:
        text = f"The answer. {_STREAM}" if operation.chunk is not None else "The answer."
        responses["200"] = {"description": text, "content": content}
    return responses


def _event(data: Any) -> dict[str, Any]:
    """A server-sent event as JSON schema sees it: its fields are texts, one of them holds JSON."""
    held = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": _END}, held]}, "event": {"type": "string"}},
    }
