"""The index of a folder for browsers: what is refused, and which program a device gets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sterna.base.errors import ArtifactError, Unavailable
from sterna.base.web import INDEX, decode, encode
from sterna.runtime.web_folder import Offer, choose_program, is_web_folder, read_index, verify

MODEL = {
    "model_type": "llama", "quantization": "q4f16_1", "fingerprint": "f", "vocab_size": 8,
    "context_window_size": 16, "prefill_chunk_size": 4, "max_batch_size": 1,
}  # fmt: skip
DATA = {"a.sterna": b"one", "b.sterna": b"two", "w.bin": bytes(24)}


def program(file: str, target: str, **own: Any) -> dict[str, Any]:
    memory = {"weights": 24, "kv_cache": 0, "arena": 0, "io": 0}
    usual = {"features": [], "barriers": True, "limits": {"maxBufferSize": 24}, "memory": memory}
    return {"file": file, "target": target, **usual, **own}


def document() -> dict[str, Any]:
    files = [
        {"name": n, "size": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in DATA.items()
    ]
    tensors = [
        {"name": "x", "dtype": "u32", "shape": [2, 2], "file": "w.bin", "offset": 0, "size": 16},
        {"name": "y", "dtype": "f32", "shape": [4], "file": "w.bin", "offset": 16, "size": 8,
         "encoding": "f32-to-bf16"},
    ]  # fmt: skip
    programs = [
        program("a.sterna", "gpu:f16", features=["shader-f16"]),
        program("b.sterna", "gpu"),
    ]
    return {"format": 1, "sterna": "0", "model": MODEL, "files": files,
            "weights": {"tensors": tensors}, "programs": programs}  # fmt: skip


def changed(path: str, value: Any) -> bytes:
    """The document with the value at a dotted path set."""
    whole = document()
    *steps, last = [int(s) if s.isdecimal() else s for s in path.split(".")]
    at: Any = whole
    for step in steps:
        at = at[step]
    at[last] = value
    return json.dumps(whole).encode()


def test_it_reads_back() -> None:
    index = decode(json.dumps(document()).encode())
    assert decode(encode(index)) == index


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format", 2, "has format 2, this Sterna reads 1"),
        ("surprise", 1, "malformed"),
        ("files.0.name", "../a.sterna", "cannot be one"),
        ("files.0.name", "c\\d", "cannot be one"),
        ("files.0.name", INDEX, "cannot be one"),
        ("files.0.name", "w.bin", "lists a file twice"),
        ("files.0.size", -1, "cannot be one"),
        ("files.0.size", 2**60, "cannot be one"),
        ("files.0.sha256", "z" * 64, "cannot be one"),
        ("programs", [], "names programs that it does not list"),
        ("programs.0.file", "c.sterna", "names programs that it does not list"),
        ("programs.0.file", "b.sterna", "a program or a tensor twice"),
        ("weights.tensors.0.name", "y", "a program or a tensor twice"),
        ("weights.tensors.0.file", "v.bin", "which cannot be"),
        ("weights.tensors.0.dtype", "f7", "which cannot be"),
        ("weights.tensors.0.shape", [2, 3], "which cannot be"),
        ("weights.tensors.0.shape", [-2, -2], "which cannot be"),
        ("weights.tensors.0.shape", [2**40, 2**40], "which cannot be"),
        ("weights.tensors.0.offset", 9, "which cannot be"),
        ("weights.tensors.0.offset", -1, "which cannot be"),
        ("weights.tensors.0.encoding", "f32-to-bf16", "which cannot be"),
        ("weights.tensors.0.encoding", "zip", "malformed"),
    ],
)
def test_what_is_refused(path: str, value: Any, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        decode(changed(path, value))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100000, b"\xff"])
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        decode(data)


def test_every_file_is_verified(tmp_path: Path) -> None:
    assert not is_web_folder(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_bytes(json.dumps(document()).encode())
    for name, data in DATA.items():
        (tmp_path / name).write_bytes(data)
    index = read_index(tmp_path)
    verify(tmp_path, index)
    for name, data in DATA.items():
        for damaged in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:]):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ArtifactError, match=name):
                verify(tmp_path, index)
        (tmp_path / name).unlink()
        with pytest.raises(ArtifactError, match=name):
            verify(tmp_path, index)
        (tmp_path / name).write_bytes(data)


def test_the_program_for_a_device() -> None:
    plain = program("w.bin", "gpu:plain", barriers=False)
    index = decode(changed("programs", [*document()["programs"], plain]))
    much, half = {"maxBufferSize": 24}, frozenset({"shader-f16"})

    def chosen(offer: Offer) -> str:
        return choose_program(index, offer).target

    assert chosen(Offer("d", half, much)) == "gpu:f16"
    assert chosen(Offer("d", frozenset(), much)) == "gpu"
    assert chosen(Offer("d", half, much, imitated=True)) == "gpu:plain"
    with pytest.raises(Unavailable, match=r"gpu wants maxBufferSize of 24 \(it has 23\)"):
        chosen(Offer("d", frozenset(), {"maxBufferSize": 23}))
    with pytest.raises(Unavailable, match="gpu:f16 wants shader-f16, maxBufferSize of 24"):
        chosen(Offer("d", frozenset(), {}))
