"""Which weights are tiled."""

import pytest
from test_passes_keep_numbers import passed, traced

from sterna.base.dtype import U32
from sterna.passes.fuse import fuse
from sterna.passes.prepack import RowTile, prepack


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f16_1z", "q0f16"])
def test_every_part_of_a_matrix_is_tiled_and_no_vector(scheme: str) -> None:
    module = passed(traced("mlp-bias", scheme), "mlp-bias")
    matrices = {
        w.name
        for f in module.functions.values()
        for w in f.weights
        if len(w.shape) == 2 and "embed" not in w.name
    }
    assert prepack(module) == dict.fromkeys(matrices, RowTile(32))
    assert any("qkv" in name for name in matrices)
    assert prepack(fuse(module)) == prepack(module)  # in kernels or not


def test_a_table_that_is_a_head_too_is_tiled() -> None:
    module = passed(traced("llama3.2-tied", "q4f16_1"), "llama3.2-tied")
    assert prepack(module)["model.embed_tokens.q_weight"] == RowTile(32)
    assert prepack(module)["model.embed_tokens.q_scale"] == RowTile(32)


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f16_1z", "q3f16_1", "q0f16"])
def test_only_packed_words_lie_in_streams(scheme: str) -> None:
    module = passed(traced("mlp-bias", scheme), "mlp-bias")
    kinds = {w.name: w.dtype for f in module.functions.values() for w in f.weights}
    tiles = prepack(module, 4)
    assert tiles == {n: RowTile(32, 4 if kinds[n] == U32 else 1) for n in prepack(module)}
    words = [name for name, tile in tiles.items() if tile.streams == 4]
    assert all(name.endswith("q_weight") for name in words)
    assert len(words) == (0 if scheme == "q0f16" else sum(n.endswith("q_weight") for n in tiles))
    assert words or scheme == "q0f16"


def test_columns_stay_as_they_are() -> None:
    module = passed(traced("llama2-gqa", "q4f16_0"), "llama2-gqa")
    assert prepack(module) == prepack(module, 4) == {}
