"""TypeScript's readers of manifest and index know every field that Python's records have.

They are written by hand and refuse what they do not know: a record of all fields, made from the
msgspec structs, has to pass.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from building import run

from sterna.base import artifact, web

READ = """
import { readManifest } from "./dist/artifact.js";
import { readIndex } from "./dist/web_index.js";
const [manifest, index] = process.argv.slice(1);
const tried = (read, text) => {
  try {
    read(new TextEncoder().encode(text));
    return null;
  } catch (error) {
    return error.message;
  }
};
console.log(JSON.stringify([tried(readManifest, manifest), tried(readIndex, index)]));
"""
SCALARS = {str: "x", int: 1, bool: True, float: 1.0}
HASH = "0" * 64


def filled(kind: Any, name: str = "") -> Any:
    """A value of this type with every field set; None only where nothing else is possible."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if name == "dtype":
        return "f32"
    if kind in SCALARS:
        return HASH if name == "sha256" else SCALARS[kind]
    if origin is typing.Literal:
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return filled(next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        kinds = typing.get_args(args[0]) if not isinstance(args[0], type) else (args[0],)
        return [filled(one) for one in kinds]
    if origin is dict:
        return {"x": filled(args[1])}
    assert issubclass(kind, msgspec.Struct), kind
    tag = kind.__struct_config__.tag
    fields = {f.name: filled(f.type, f.name) for f in msgspec.structs.fields(kind)}
    return fields if tag is None else {"type": tag, **fields}


def told(manifest: Any, index: Any) -> list[str | None]:
    given = (json.dumps(manifest), json.dumps(index))
    found: list[str | None] = json.loads(run("node", "--input-type=module", "-e", READ, *given))
    return found


def records() -> tuple[Any, Any]:
    manifest = filled(artifact.Manifest) | {"format": artifact.FORMAT}
    index = filled(web.WebIndex) | {"format": web.FORMAT}
    index["weights"]["tensors"][0] |= {"file": "x", "size": 4, "offset": 0}
    index["files"][0]["size"] = 4
    return manifest, index


def test_every_field_is_known(dist: Path) -> None:
    manifest, index = records()
    refused, passed = told(manifest, index)
    assert passed is None
    assert "room for adapters" in (refused or "")  # which is asked after reading
    without = manifest | {"adapters": None}
    assert "takes images" in (told(without, index)[0] or "")
    assert told(without | {"vision": None}, index) == [None, None]


@pytest.mark.parametrize("where", [(), ("model",), ("sampler",), ("kv_cache",), ("params", 0)])
def test_a_field_that_is_not_known_is_named(dist: Path, where: tuple[Any, ...]) -> None:
    manifest, index = records()
    record = manifest
    for step in where:
        record = record[step]
    record["novelty"] = 1
    (refused, _) = told(manifest, index)
    assert 'a field "novelty"' in (refused or "")
