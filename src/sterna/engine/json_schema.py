"""JSON schemas from strangers: checked for what a grammar can enforce, and made tight.

In: a schema as plain data. Out: the schema that the grammar is made of, or RequestError for a
keyword that would be ignored: an answer either satisfies the whole schema or is not begun. An
object that lists its properties gets no others unless `additionalProperties` says so: narrower than
JSON Schema, so answers still satisfy it. Knows no grammar and no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sterna.base.errors import RequestError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
Schema = Mapping[str, Any]

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE_SCHEMA = ("items", "additionalItems", "additionalProperties")
_CHECKS = (
    "type",
    "enum",
    "const",
    "required",
    "minProperties",
    "maxProperties",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "$ref",
)
ENFORCED = frozenset({*_SCHEMAS_BY_NAME, *_SCHEMA_LISTS, *_ONE_SCHEMA, *_CHECKS})
# These describe; JSON Schema lets them decide nothing.
ANNOTATIONS = frozenset(
    {
        "$comment",
        "$id",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_OF_OBJECTS = frozenset({"properties", "patternProperties", "additionalProperties", "required"})
_COMBINED = ("allOf", "anyOf", "oneOf", "$ref")


def enforceable(schema: Any, where: str) -> Schema:
    """The schema to constrain answers with; RequestError names the keyword that cannot be kept."""
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where} is {schema!r:.60}, possible is a JSON schema object", where)
    _check_size(schema, where)
    for path, part in _parts(schema, where):
        for keyword in part:
            if keyword not in ENFORCED and keyword not in ANNOTATIONS:
                raise RequestError(
                    f"{path} has the keyword {keyword!r:.60}, which cannot be enforced; possible "
                    f"are {', '.join(sorted(ENFORCED))}",
                    where,
                )
    mixed = any(_is_mixed(part) for _, part in _parts(schema, where))
    return schema if mixed else _closed(schema)


def _check_size(schema: Schema, where: str) -> None:
    if _depth(schema) > MAX_DEPTH:
        raise RequestError(f"{where} is nested more than {MAX_DEPTH} levels deep", where)
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where} is no JSON ({error})", where) from None
    if size > MAX_BYTES:
        raise RequestError(f"{where} has {size} bytes, possible are up to {MAX_BYTES}", where)


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion and no further than need be."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            item
            for outer in level
            if isinstance(outer, Mapping | list | tuple)
            for item in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return depth


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Schema]]:
    """A schema and all schemas within it, each with where it is."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for keyword, value in schema.items():
        if keyword in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            for name, part in value.items():
                yield from _parts(part, f"{path}.{keyword}.{name}")
        elif keyword in (*_SCHEMA_LISTS, *_ONE_SCHEMA):
            for i, part in enumerate(value) if isinstance(value, list | tuple) else [(None, value)]:
                yield from _parts(part, f"{path}.{keyword}" + ("" if i is None else f"[{i}]"))


def _is_mixed(schema: Schema) -> bool:
    """Whether properties of one object come from several schemas: none may exclude the others'."""
    several = isinstance(schema.get("allOf"), list | tuple) and len(schema["allOf"]) > 1
    combined = [keyword for keyword in _COMBINED if keyword in schema]
    return several or len(combined) > 1 or bool(combined and _OF_OBJECTS & schema.keys())


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever an object lists its properties."""
    if not isinstance(schema, Mapping):
        return schema
    closed = {keyword: _closed_value(keyword, value) for keyword, value in schema.items()}
    properties, required = closed.get("properties"), closed.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list | tuple)
        and set(map(str, required)) <= properties.keys()
        and not closed.keys() & {"patternProperties", "minProperties"}
    ):
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_value(keyword: str, value: Any) -> Any:
    if keyword in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
        return {name: _closed(part) for name, part in value.items()}
    if keyword in _SCHEMA_LISTS and isinstance(value, list | tuple):
        return [_closed(part) for part in value]
    if keyword in _ONE_SCHEMA:
        return [*map(_closed, value)] if isinstance(value, list | tuple) else _closed(value)
    return value
