"""A safetensors header is believed only as far as it can be checked."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.dtype import DTYPES
from sterna.base.errors import CheckpointError, UnsafeFile, UnsupportedModel
from sterna.checkpoint.gguf import open_gguf
from sterna.checkpoint.safetensors import open_safetensors, write_safetensors

HUGE = 2**63


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def f32(shape: list[Any], first: Any, last: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_bit_for_bit(path: Path, dtype: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 2, size=(3, 5 * dtype.bytes), dtype=np.uint8)
    array = noise.view(dtype.numpy)
    write_safetensors(path, {"a": array, "scalar": array[0, 0].reshape(()), "none": array[:0]})
    refs = open_safetensors(path)
    assert set(refs) == {"a", "scalar", "none"}
    assert (refs["a"].dtype, refs["a"].shape) == (dtype, array.shape)
    assert refs["a"].read().tobytes() == array.tobytes()
    assert refs["a"].read().dtype == array.dtype
    assert refs["scalar"].read().shape == ()
    assert refs["none"].read().shape == (0, 5)


@pytest.mark.parametrize(
    ("name", "read"), [("m.safetensors", open_safetensors), ("m.gguf", open_gguf)]
)
def test_a_pointer_of_git_lfs_is_told(tmp_path: Path, name: str, read: Any) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read(tmp_path / name)


def test_a_layout_written_by_hand(path: Path) -> None:
    data = np.arange(6, dtype="<f4").tobytes() + np.array([1.5], ml_dtypes.bfloat16).tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [1], "data_offsets": [24, 26]},
        "a": f32([2, 3], 0, 24),
    }
    path.write_bytes(file_of(json.dumps(header).encode() + b"   ", data))
    refs = open_safetensors(path)
    assert list(refs) == ["a", "b"], "file order"
    assert refs["a"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert refs["b"].read().astype(np.float32).tolist() == [1.5]


def test_a_file_that_others_wrote(shared: Path) -> None:
    refs = open_safetensors(shared / "models" / "stories260K-hf" / "model.safetensors")
    embed = refs["model.embed_tokens.weight"].read()
    assert embed.shape == (512, 64)
    assert np.isfinite(embed).all()


def test_no_tensors_at_all(path: Path) -> None:
    path.write_bytes(file_of({}))
    assert open_safetensors(path) == {}


LIES: dict[str, tuple[object, bytes]] = {
    "too few bytes": ({"a": f32([2], 0, 4)}, bytes(4)),
    "too many bytes": ({"a": f32([1], 0, 8)}, bytes(8)),
    "beyond the file": ({"a": f32([4], 0, 16)}, bytes(8)),
    "negative start": ({"a": f32([2], -4, 4)}, bytes(8)),
    "end before start": ({"a": f32([0], 8, 4)}, bytes(8)),
    "offsets past 2**63": ({"a": f32([1], HUGE, HUGE + 4)}, bytes(8)),
    "offsets that wrap at 2**64": ({"a": f32([1], 2**64 - 4, 2**64)}, bytes(8)),
    "fractional offset": ({"a": f32([1], 0.0, 4)}, bytes(4)),
    "boolean offset": ({"a": f32([0], False, False)}, b""),
    "one offset": ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0]}}, bytes(4)),
    "no offsets": ({"a": {"dtype": "F32", "shape": []}}, bytes(4)),
    "overlap": ({"a": f32([2], 0, 8), "b": f32([2], 4, 12)}, bytes(12)),
    "same bytes twice": ({"a": f32([2], 0, 8), "b": f32([2], 0, 8)}, bytes(8)),
    "hole before": ({"a": f32([1], 4, 8)}, bytes(8)),
    "hole between": ({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, bytes(12)),
    "bytes after": ({"a": f32([1], 0, 4)}, bytes(8)),
    "data but no tensor": ({}, bytes(4)),
    "negative size": ({"a": f32([-1, -1], 0, 4)}, bytes(4)),
    "shape product that wraps": ({"a": f32([2**32, 2**32], 0, 0)}, b""),
    "zero size beside huge ones": ({"a": f32([0, 2**62, 2**62], 0, 0)}, b""),
    "shape of text": ({"a": f32(["1"], 0, 4)}, bytes(4)),  # type: ignore[list-item]
    "shape of bools": ({"a": f32([True], 0, 4)}, bytes(4)),
    "shape no list": ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, bytes(4)),
    "rank 40": ({"a": f32([1] * 40, 0, 4)}, bytes(4)),
    "unknown dtype": ({"a": {"dtype": "F33", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    "dtype in lower case": ({"a": {"dtype": "f32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    "dtype no text": ({"a": {"dtype": 1, "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    "entry no object": ({"a": 1}, b""),
    "metadata no object": ({"__metadata__": []}, b""),
    "metadata not text": ({"__metadata__": {"a": 1}}, b""),
    "duplicate name": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}', b""),
    "header no object": (b"[]", b""),
    "header starts with a blank": (b" {}", b""),
    "header nested deep": (b'{"a":' * 100_000, b""),
    "header not UTF-8": (b'{"\xff":1}', b""),
}


@pytest.mark.parametrize(("header", "data"), LIES.values(), ids=LIES)
def test_lies_are_refused(path: Path, header: object, data: bytes) -> None:
    path.write_bytes(file_of(header, data))
    with pytest.raises(UnsafeFile, match="safetensors"):
        open_safetensors(path)


@pytest.mark.parametrize("length", [0, 1, 3, 100_000_001, 2**31, 2**63, 2**64 - 1, 2**64 - 8])
def test_header_length_lies(path: Path, length: int) -> None:
    path.write_bytes(file_of({}, b"", length))
    with pytest.raises(UnsafeFile, match="header"):
        open_safetensors(path)


def test_e4m3_comes_as_its_bytes(path: Path) -> None:
    entry = {"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}
    path.write_bytes(file_of(entry, bytes([0, 56, 184, 126])))
    ref = open_safetensors(path)["w"]
    assert (ref.dtype.name, ref.encoding, ref.shape) == ("u8", "e4m3", (2, 2))
    assert ref.read().tolist() == [[0, 56], [184, 126]]


@pytest.mark.parametrize("name", ["F8_E8M0", "F8_E5M2", "F4", "C64"])
def test_fp8_and_others_are_refused_by_name(path: Path, name: str) -> None:
    path.write_bytes(
        file_of({"w": {"dtype": name, "shape": [4], "data_offsets": [0, 4]}}, bytes(4))
    )
    with pytest.raises(UnsupportedModel, match=f"'w' has element type {name}"):
        open_safetensors(path)


def small_file() -> bytes:
    header = {"a": f32([2, 2], 0, 16), "b": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]}}
    return file_of(header, bytes(19))


def test_truncated_at_every_length(path: Path) -> None:
    whole = small_file()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnsafeFile):
            open_safetensors(path)
    path.write_bytes(whole)
    assert len(open_safetensors(path)) == 2


def test_every_single_bit_flip_is_read_or_refused(path: Path) -> None:
    whole = small_file()
    survived = 0
    for bit in range((len(whole) - 19) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        survived += readable(path)
    assert survived < 200, "a flip may rename a tensor or swap a dtype of the same width, no more"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    header=st.binary(max_size=80),
    data=st.binary(max_size=16),
    length=st.none() | st.integers(0, 99),
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes, length: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(file_of(header, data, length))
    readable(path)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BOOL", "F8_E4M3", "Q"]),
                "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=3),
                "data_offsets": st.lists(st.integers(0, 24) | st.integers(), max_size=3),
            }
        ),
        max_size=3,
    )
)
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-header.safetensors"
    path.write_bytes(file_of(header, bytes(24)))
    readable(path)


def readable(path: Path) -> bool:
    try:
        arrays = [ref.read() for ref in open_safetensors(path).values()]
    except CheckpointError:
        return False
    assert sum(array.nbytes for array in arrays) <= path.stat().st_size
    return True


def test_bool_must_be_zero_or_one(path: Path) -> None:
    path.write_bytes(
        file_of({"m": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2")
    )
    with pytest.raises(UnsafeFile, match="other than 0 and 1"):
        open_safetensors(path)["m"].read()


def test_a_file_that_shrinks_after_opening(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros(100, np.float32)})
    ref = open_safetensors(path)["a"]
    os.truncate(path, ref.offset + 10)
    with pytest.raises(UnsafeFile, match="ended inside tensor 'a'"):
        ref.read()
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        ref.read()


def test_absent_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(UnsafeFile, match="not a regular file"):
        open_safetensors(tmp_path)


def test_writer_streams_strided_and_foreign_arrays(path: Path) -> None:
    base = np.arange(12, dtype=">f4").reshape(3, 4)

    def pairs() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        yield "columns", base.T
        yield "big-endian", base

    write_safetensors(path, pairs(), {"format": "pt"})
    refs = open_safetensors(path)
    assert np.array_equal(refs["columns"].read(), base.T)
    assert np.array_equal(refs["big-endian"].read(), base)
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0, "data starts aligned"


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros(1, np.float32)})
    before = path.read_bytes()
    pair = ("a", np.zeros(2, np.float32))
    with pytest.raises(CheckpointError, match="given twice"):
        write_safetensors(path, [pair, pair])
    with pytest.raises(CheckpointError, match="complex64"):
        write_safetensors(path, {"c": np.zeros(2, np.complex64)})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
