"""The GGUF reader: what honest files give, and one sentence for every lie a file can tell."""

import os
import resource
import struct
import time
from pathlib import Path

import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U8, U32, U64, Gguf, array, text, value
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import CheckpointError, MissingTensor, UnsafeFile, UnsupportedModel
from sterna.checkpoint.gguf import MAX_STRINGS, open_gguf


def written(folder: Path, file: Gguf | bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(bytes(file))
    return path


def test_reads_versions_2_and_3(tmp_path: Path) -> None:
    for version in (2, 3):
        pairs = [
            ("n", value(U32, 7)), ("s", value(STRING, "é")), ("t", value(BOOL, 1)),
            ("words", array(STRING, ["x", "yz"])), ("ids", array(I32, [1, -2])),
            ("f", value(F32, 0.5)),
        ]  # fmt: skip
        opened = open_gguf(written(tmp_path, Gguf(version=version, pairs=pairs)))
        assert opened.metadata["n"] == 7
        assert opened.metadata["s"] == "é"
        assert opened.metadata["t"] is True
        assert opened.metadata["words"] == ["x", "yz"]
        assert opened.metadata["ids"].tolist() == [1, -2]
        assert opened.metadata["f"] == 0.5
        a = opened.tensors["a"]
        assert (a.shape, a.type.name) == ((2, 4), "F32")
        assert a.rows.read().tobytes() == bytes(range(32))
        assert opened.tensors["b"].rows.read().tobytes() == bytes(range(32, 48))


def test_alignment_is_the_files(tmp_path: Path) -> None:
    file = Gguf(
        pairs=[("general.alignment", value(U32, 8))],
        tensors=[("a", (2,), 0, 0), ("b", (2,), 0, 8)],
        data=bytes(range(16)),
        alignment=8,
    )
    opened = open_gguf(written(tmp_path, file))
    assert opened.tensors["b"].rows.read().tobytes() == bytes(range(8, 16))


def test_a_file_without_tensors_is_a_vocabulary(shared: Path) -> None:
    opened = open_gguf(shared / "gguf-vocab" / "ggml-vocab-llama-spm.gguf")
    assert not opened.tensors
    assert len(opened.metadata["tokenizer.ggml.tokens"]) == 32000


def one(name: str | bytes = "a", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0):
    return Gguf(tensors=[(name, dims, kind, offset)], data=bytes(64))


LIES = {
    "magic": (Gguf(magic=b"GGML"), UnsafeFile, "not a GGUF file"),
    "version 1": (Gguf(version=1), UnsupportedModel, "version 1"),
    "version 99": (Gguf(version=99), UnsupportedModel, "versions 2 and 3"),
    "big endian": (Gguf(version=3 << 24), UnsupportedModel, "big-endian"),
    "tensor count": (Gguf(tensor_count=2**60), UnsafeFile, "cannot hold"),
    "one tensor more": (Gguf(tensor_count=3, data=b""), UnsafeFile, "cannot hold|empty|lies"),
    "pair count": (Gguf(pair_count=2**63), UnsafeFile, "cannot hold"),
    "key length": (
        Gguf(pairs=[(b"x" * 300, value(U32, 1))]), UnsafeFile, "at most 255"),
    "key twice": (
        Gguf(pairs=[("k", value(U32, 1)), ("k", value(U32, 2))]), UnsafeFile, "twice"),
    "empty key": (Gguf(pairs=[("", value(U32, 1))]), UnsafeFile, "empty"),
    "key not text": (Gguf(pairs=[(b"\xff", value(U32, 1))]), UnsafeFile, "UTF-8"),
    "value not text": (
        Gguf(pairs=[("k", value(STRING, text(b"a\xc3")))]), UnsafeFile, "UTF-8"),
    "string length": (
        Gguf(pairs=[("k", value(STRING, struct.pack("<Q", 2**20)))]), UnsafeFile, "claimed"),
    "value type": (Gguf(pairs=[("k", value(77, b"abcd"))]), UnsafeFile, "unknown type 77"),
    "bool": (Gguf(pairs=[("k", value(BOOL, 2))]), UnsafeFile, "BOOL"),
    "array type": (
        Gguf(pairs=[("k", struct.pack("<IIQ", ARRAY, 77, 1))]), UnsafeFile, "unknown type 77"),
    "array count": (Gguf(pairs=[("k", array(U64, [1], 2**50))]), UnsafeFile, "claimed"),
    "array count that wraps": (
        Gguf(pairs=[("k", array(U64, [1], 2**61))]), UnsafeFile, "claimed"),
    "strings count": (
        Gguf(pairs=[("k", array(STRING, ["a"], MAX_STRINGS + 1))]), UnsafeFile, "strings"),
    "strings of nothing": (
        Gguf(pairs=[("k", array(STRING, [], 1000))]), UnsafeFile, "1000 strings"),
    "nested arrays": (
        Gguf(pairs=[("k", struct.pack("<IIQ", ARRAY, ARRAY, 1))]), UnsupportedModel,
        "array of arrays"),
    "alignment 0": (
        Gguf(pairs=[("general.alignment", value(U32, 0))]), UnsafeFile, "power of two"),
    "alignment 48": (
        Gguf(pairs=[("general.alignment", value(U32, 48))]), UnsafeFile, "power of two"),
    "alignment huge": (
        Gguf(pairs=[("general.alignment", value(U32, 2**31))]), UnsafeFile, "power of two"),
    "alignment text": (
        Gguf(pairs=[("general.alignment", value(STRING, "32"))]), UnsafeFile, "power of two"),
    "rank 0": (one(dims=()), UnsafeFile, "0 dimensions"),
    "rank 5": (one(dims=(1, 1, 1, 1, 1)), UnsafeFile, "5 dimensions"),
    "zero dim": (one(dims=(4, 0)), UnsafeFile, "holds nothing"),
    "huge dim": (one(dims=(2**62, 2**62)), UnsafeFile, "addressed"),
    "large dim": (one(dims=(2**40,)), UnsafeFile, "truncated"),
    "type unknown": (one(kind=1000), UnsafeFile, "unknown type 1000"),
    "type removed": (one(kind=4), UnsupportedModel, "Q4_2"),
    "type foreign": (one(kind=16, dims=(256,)), UnsupportedModel, "IQ2_XXS"),
    "part of a block": (one(kind=2, dims=(33,)), UnsafeFile, "do not fill"),
    "offset unaligned": (one(offset=4), UnsafeFile, "not aligned"),
    "offset outside": (one(offset=2**40), UnsafeFile, "truncated"),
    "offset wraps": (one(offset=2**64 - 32), UnsafeFile, "truncated"),
    "overlap": (
        Gguf(tensors=[("a", (16,), 0, 0), ("b", (4,), 0, 32)]), UnsafeFile, "overlap"),
    "name twice": (
        Gguf(tensors=[("a", (4,), 0, 0), ("a", (4,), 0, 32)]), UnsafeFile, "twice"),
    "name empty": (one(name=""), UnsafeFile, "empty"),
    "name with NUL": (one(name="a\0b"), UnsafeFile, "not printable"),
    "name not text": (one(name=b"\xc3("), UnsafeFile, "UTF-8"),
    "name too long": (one(name="x" * 256), UnsafeFile, "at most 255"),
    "split count": (
        Gguf(pairs=[("split.count", value(U32, 2**31))]), UnsafeFile, "split.count"),
    "split name": (Gguf(pairs=[("split.count", value(U32, 2))]), UnsafeFile, "2 files"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_one_sentence(lie: str, tmp_path: Path) -> None:
    file, kind, words = LIES[lie]
    with pytest.raises(kind, match=words) as caught:
        open_gguf(written(tmp_path, file))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize("size", [0, 3, 4, 8, 12, 20, 24, 30, 60, 100])
def test_truncated(size: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile):
        open_gguf(written(tmp_path, bytes(Gguf())[:size]))


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        open_gguf(tmp_path / "none.gguf")
    with pytest.raises(UnsafeFile, match="not a regular file"):
        open_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeFile, match="not a regular file"):
        open_gguf(tmp_path / "pipe")


def test_huge_claims_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    """A sparse file makes every declared size plausible; the header's cap holds all the same."""
    path = written(tmp_path, Gguf(pairs=[("k", array(U8, [], 2**33))]))
    os.truncate(path, 2**34)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(UnsafeFile, match="the most that are read"):
        open_gguf(path)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_file_that_shrinks_later(tmp_path: Path) -> None:
    path = written(tmp_path, Gguf())
    opened = open_gguf(path)
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(UnsafeFile, match="shrank"):
        opened.tensors["b"].rows.read()


def shard(part: int, name: str, count: int = 2, tensors: int = 2) -> Gguf:
    pairs = [
        ("split.no", value(U32, part)), ("split.count", value(U32, count)),
        ("split.tensors.count", value(I32, tensors)),
    ]  # fmt: skip
    return Gguf(pairs=pairs, tensors=[(name, (4,), 0, 0)], data=bytes([part]) * 16)


def test_split_models(tmp_path: Path) -> None:
    first = written(tmp_path, shard(0, "a"), "m-00001-of-00002.gguf")
    with pytest.raises(MissingTensor, match=r"m-00002-of-00002\.gguf"):
        open_gguf(first)
    second = written(tmp_path, shard(1, "b"), "m-00002-of-00002.gguf")
    opened = open_gguf(first)
    assert opened.tensors["b"].rows.read().tobytes() == bytes([1]) * 16
    with pytest.raises(UnsafeFile, match="first of them"):
        open_gguf(second)
    written(tmp_path, shard(1, "a"), "m-00002-of-00002.gguf")
    with pytest.raises(UnsafeFile, match="another part"):
        open_gguf(first)
    written(tmp_path, shard(0, "a", tensors=5), "m-00001-of-00002.gguf")
    written(tmp_path, shard(1, "b"), "m-00002-of-00002.gguf")
    with pytest.raises(MissingTensor, match="5 are announced"):
        open_gguf(first)


WHOLE = bytes(
    Gguf(
        pairs=[
            ("general.alignment", value(U32, 32)), ("words", array(STRING, ["x", "yz"])),
            ("ids", array(I32, [1, 2, 3])), ("s", value(STRING, "abc")),
        ],
    )
)  # fmt: skip


@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    cut=st.integers(0, len(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8))),
)
def test_fuzzed_files_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(WHOLE)
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(bytes(data[: cut or len(data)]))
    try:
        opened = open_gguf(path)
    except CheckpointError:
        return
    for tensor in opened.tensors.values():
        assert tensor.rows.read().nbytes == tensor.rows.nbytes
