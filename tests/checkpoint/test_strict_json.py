"""JSON from strangers is bounded and exact, or refused in one sentence."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import CheckpointError, UnsafeFile
from sterna.checkpoint.config import (
    MAX_DEPTH,
    field,
    parse_json,
    read_config,
    read_generation_config,
    read_json,
)

REFUSED = {
    "duplicate key": b'{"a": 1, "a": 2}',
    "duplicate key inside": b'{"x": [{"a": 1, "a": 1}]}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "infinity by size": b'{"a": 1e999}',
    "an integer of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "invalid UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a surrogate pair": rb'{"a": "\ud800"}',
    "half a pair in a key": rb'{"\udc00": 1}',
    "deep lists": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "very deep lists": b'{"a": ' + b"[" * 200_000,
    "very deep objects": b'{"a": ' * 200_000,
    "truncated": b'{"a": 1',
    "two values": b"{} {}",
    "empty": b"",
    "comment": b"{} // x",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refused(data: bytes) -> None:
    with pytest.raises(UnsafeFile, match=r"^some\.json "):
        parse_json(data, "some.json")


def test_infinity_as_a_config_has_it(tmp_path: Path) -> None:
    """Python's word for it, and the object that newer versions of transformers write."""
    for text in ("Infinity", '{"__float__": "Infinity"}'):
        (tmp_path / "config.json").write_text(f'{{"a": [0.0, {text}]}}')
        assert read_config(tmp_path) == {"a": [0.0, "Infinity"]}
    with pytest.raises(UnsafeFile):
        parse_json(b'{"a": Infinity}', "x")


@pytest.mark.parametrize("data", [b"[]", b"1", b'"x"', b"null"])
def test_only_an_object_will_do(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="one JSON object"):
        parse_json(data, "some.json")


def test_depth_up_to_the_limit_is_read() -> None:
    # The object is one level, each list another, the number is a leaf.
    nested = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"1" + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_json(nested, "x")
    deeper = nested.replace(b"1", b"[1]")
    with pytest.raises(UnsafeFile, match="deeper"):
        parse_json(deeper, "x")


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(UnsafeFile, match="larger than 7 bytes"):
        read_json(path, max_bytes=7)


def test_absent_folder_or_pipe_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UnsafeFile, match="not a regular file"):
        read_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UnsafeFile, match="not a regular file"):
            read_json(tmp_path / "pipe")


def test_config_and_optional_generation_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_config(tmp_path) == {"model_type": "llama"}
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.9}')
    assert read_generation_config(tmp_path) == {"top_p": 0.9}


def test_field_takes_no_bool_for_an_int() -> None:
    assert field({"n": 3}, "n", int, "x") == 3
    with pytest.raises(UnsafeFile, match="'n' as int, found bool"):
        field({"n": True}, "n", int, "x")
    with pytest.raises(UnsafeFile, match="found nothing"):
        field({}, "n", int, "x")
    with pytest.raises(UnsafeFile, match="must be a JSON object"):
        field([], "n", int, "x")


def test_every_real_config_is_read(shared: Path) -> None:
    paths = sorted(shared.glob("configs*/*/*.json"))
    assert len(paths) > 50
    for path in paths:
        assert isinstance(read_json(path), dict)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, "x")
    except CheckpointError:
        return
    assert json.loads(data) == value
