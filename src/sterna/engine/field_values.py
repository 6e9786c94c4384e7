"""Which values a field may have, for the sentence that refuses another one.

In: the type of a request, and a path as msgspec's errors write it, `messages[0].content[0].type`.
Out: the literals that the types along the path allow. Knows no request in particular.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\[[^]]*\]|[^.\[\]]+")


def possible_values(kind: type, path: str, given: object = None) -> list[str]:
    """The literals at `path`, as they are written in JSON; none if it leads to other types.

    `given` is the JSON data that the path leads into: its tags tell which member of a union counts.
    """
    types = list(_plain([inspect.type_info(kind)]))
    for step in _STEP.findall(path):
        types = _tagged(types, given, step)
        types = list(_plain(inner for one in types for inner in _inside(one, step)))
        given = _below(given, step)
    literals = (one for one in types if isinstance(one, inspect.LiteralType))
    values = (value for one in literals for value in one.values)
    return list(dict.fromkeys(str(v).lower() if isinstance(v, bool) else str(v) for v in values))


def _tagged(types: list[Any], given: object, step: str) -> list[Any]:
    """The members of a union that data has the tag of; all where it has none, or asks for it."""
    if not isinstance(given, Mapping):
        return types
    found = [
        one
        for one in types
        if isinstance(one, inspect.StructType)
        and one.tag_field not in (None, step)
        and given.get(one.tag_field) == one.tag
    ]
    return found or types


def _below(given: object, step: str) -> object:
    if isinstance(given, Mapping):
        return given.get(step)
    index = step.strip("[]")
    inside = isinstance(given, list) and index.isdecimal() and int(index) < len(given)
    return given[int(index)] if inside else None  # type: ignore[index]


def _plain(types: Iterable[Any]) -> Iterator[Any]:
    """The members of unions, and what descriptions are about."""
    for one in types:
        if isinstance(one, inspect.UnionType):
            yield from _plain(one.types)
        elif isinstance(one, inspect.Metadata):
            yield from _plain([one.type])
        else:
            yield one


def _inside(one: Any, step: str) -> Iterator[Any]:
    if step.startswith("["):
        if isinstance(one, inspect.ListType):
            yield one.item_type
    elif isinstance(one, inspect.StructType):
        if step == one.tag_field:
            yield inspect.LiteralType((one.tag,))
        yield from (field.type for field in one.fields if field.encode_name == step)
