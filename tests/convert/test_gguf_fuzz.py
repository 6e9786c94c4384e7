"""Bytes of a GGUF file changed anywhere: it converts, or ends in one sentence, soon."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import Error
from sterna.convert import ConvertOptions, convert_weight, gen_config

pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

from gguf_source import WHOLE, write_gguf

HEADER = 6000  # metadata, vocabulary and tensor descriptions lie here


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    small = {**WHOLE, "num_hidden_layers": 1, "vocab_size": 32, "intermediate_size": 256}
    write_gguf(path, small, lambda name: "Q4_K")
    return path.read_bytes()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(24, HEADER), st.binary(min_size=1, max_size=4)),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_changed_bytes(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    data = bytearray(whole)
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    path = folder / "m.gguf"
    path.write_bytes(bytes(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STERNA_CACHE", str(folder / "cache"))
        try:
            options = ConvertOptions(measure=False)
            convert_weight(path, folder / "out", quantization="stored", options=options)
            gen_config(path, folder / "out", quantization="stored")
        except Error as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                pytest.fail(f"not one sentence: {error}")
