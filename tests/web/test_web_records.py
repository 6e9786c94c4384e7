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
from web_models import WebModel

from sterna.base import artifact, web
from sterna.runtime.web_folder import Offer, choose_program

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
DAMAGE = """
import { readFileSync } from "node:fs";
import { ArtifactError } from "./dist/errors.js";
import { readBundle } from "./dist/artifact.js";
import { readIndex } from "./dist/web_index.js";
const [program, index] = process.argv.slice(1).map((path) => new Uint8Array(readFileSync(path)));
let seed = 1;
const random = (n) => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) % n;
const flipped = (data) => {
  const copy = data.slice();
  for (let n = 1 + random(3); n > 0; n--) copy[random(copy.length)] = random(256);
  return copy;
};
const told = { read: 0, refused: 0, others: [] };
const attempt = (read, data) => {
  try {
    read(data);
    told.read++;
  } catch (error) {
    if (error instanceof ArtifactError) told.refused++;
    else told.others.push(`${error.name}: ${error.message}`);
  }
};
for (const [data, read] of [[program, (d) => readBundle(d, "x")], [index, readIndex]]) {
  attempt(read, data);
  for (let n = 0; n < 60; n++) {
    attempt(read, data.subarray(0, random(data.length)));
    attempt(read, flipped(data));
    attempt(read, flipped(data.subarray(0, Math.min(4000, data.length))));
  }
  attempt(read, new Uint8Array());
  attempt(read, new TextEncoder().encode("[".repeat(1e6)));
}
const huge = program.slice();
huge.fill(255, 24, 32);
attempt((d) => readBundle(d, "x"), huge);
console.log(JSON.stringify(told));
"""
CHOOSE = """
import { readFileSync } from "node:fs";
import { chooseProgram, readIndex } from "./dist/web_index.js";
const [path, ...offers] = process.argv.slice(1);
const index = readIndex(new Uint8Array(readFileSync(path)));
const chosen = offers.map((text) => {
  const { features, ...rest } = JSON.parse(text);
  return chooseProgram(index, { ...rest, features: new Set(features) }).target;
});
console.log(JSON.stringify(chosen));
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
    without = without | {"vision": None}
    assert "which this version does not know" in (told(without, index)[0] or "")
    without = without | {"sampler": None}
    assert "recurrent model" in (told(without, index)[0] or "")
    without["kv_cache"]["recurrent"] = False
    assert "recurrent model" in (told(without, index)[0] or "")
    without = without | {"states": None}
    assert told(without, index) == [None, None]


@pytest.mark.parametrize("where", [(), ("model",), ("sampler",), ("kv_cache",), ("params", 0)])
def test_a_field_that_is_not_known_is_named(dist: Path, where: tuple[Any, ...]) -> None:
    manifest, index = records()
    record = manifest
    for step in where:
        record = record[step]
    record["novelty"] = 1
    (refused, _) = told(manifest, index)
    assert 'a field "novelty"' in (refused or "")


def test_damaged_and_hostile_files_are_refused(dist: Path, tern: WebModel) -> None:
    """Cut, scribbled over, nested without end, with a length of 2^64 - 1: one kind of error."""
    files = (str(tern.folder / "webgpu.sterna"), str(tern.folder / web.INDEX))
    found = json.loads(run("node", "--input-type=module", "-e", DAMAGE, *files))
    assert found["others"] == []
    assert found["read"] >= 2
    assert found["refused"] > 150


def test_python_and_typescript_choose_the_same_program(dist: Path, tern: WebModel) -> None:
    path = tern.folder / web.INDEX
    index = web.decode(path.read_bytes())
    limits = {name: 2**40 for program in index.programs for name in program.limits}
    sets = [(), ("shader-f16",), ("subgroups",), ("shader-f16", "subgroups", "timestamp-query")]
    offers = [
        Offer("an adapter", frozenset(features), limits, imitated)
        for features in sets
        for imitated in (False, True)
    ]
    given = [
        json.dumps({"name": o.name, "features": sorted(o.features), "limits": limits,
                    "imitated": o.imitated})
        for o in offers
    ]  # fmt: skip
    found = json.loads(run("node", "--input-type=module", "-e", CHOOSE, str(path), *given))
    assert found == [choose_program(index, offer).target for offer in offers]
    assert found[::2] == ["webgpu", "webgpu:f16", "webgpu:subgroups", "webgpu:f16-subgroups"]
    plain, lanes = "webgpu:barrier-free", "webgpu:barrier-free-subgroups"
    assert found[1::2] == [plain, plain, lanes, lanes]
