"""The table of schemes: its figures, its refusals, its documentation."""

import pytest

from sterna.base.dtype import BF16, F16, F32, U32
from sterna.base.errors import UsageError
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES, Scheme, docs_table, scheme

BYTES_FOR_32 = {
    "q0f16": 64, "q0f32": 128, "q0bf16": 64,
    "q4f16_1": 18, "q4f32_1": 18, "q4bf16_1": 18, "q4f16_0": 16.5, "q3f16_1": 14, "q8f16_1": 34,
    "q4f16_1z": 19, "q4f32_1z": 19, "q4bf16_1z": 19, "q4f16_0z": 16.75, "q3f16_1z": 15,
    "q8f16_1z": 35,
}  # fmt: skip


def test_bytes_are_the_documented_ones() -> None:
    assert {name: row.bytes_for_32_weights for name, row in SCHEMES.items()} == BYTES_FOR_32
    assert scheme("q4f16_1").bits_per_weight == 4.5
    assert MLC_SCHEMES["q3f16_1"].bits_per_weight == 3.6


@pytest.mark.parametrize(
    ("name", "bias", "max_code"),
    [("q3f16_1", 3, 6), ("q4f16_1", 7, 14), ("q8f16_1", 127, 254), ("q4f16_1z", 0, 15)],
)
def test_codes(name: str, bias: int, max_code: int) -> None:
    assert (scheme(name).bias, scheme(name).max_code) == (bias, max_code)


def test_names_say_what_the_rows_hold() -> None:
    for name, row in (SCHEMES | MLC_SCHEMES).items():
        assert row.name == name
        assert name.startswith(f"q{row.bits if row.is_quantized else 0}{row.compute}")
        assert row.affine == name.endswith("z")
        assert (row.layout == "KN") == ("_0" in name)
        assert row.storage == (U32 if row.is_quantized else row.compute)
    assert scheme("q4f32_1").scale_on_disk == BF16
    assert scheme("q4f16_1").scale_on_disk == F16


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'q4f16-1' is not known; did you mean 'q4f16_1'\?") as e:
        scheme("q4f16-1")
    assert all(name in str(e.value) for name in SCHEMES | MLC_SCHEMES)


@pytest.mark.parametrize("wrong", [12, 4, -8])
def test_a_group_that_does_not_fill_words_is_refused(wrong: int) -> None:
    with pytest.raises(UsageError, match="must be a multiple of 8"):
        Scheme("custom", 4, F16, group=wrong)


def test_mlc_names_are_accepted() -> None:
    assert scheme("q3f16_0").group == 40
    assert scheme("q4f16_0").group == 128  # both have the name: ours is what is written


def test_what_is_quantized() -> None:
    q4, ends_kept = scheme("q4f16_1"), scheme("q4f16_2")
    assert [q4.quantizes(kind) for kind in ("linear", "head", "embedding", "experts")] == [True] * 4
    assert [q4.quantizes(kind) for kind in ("norm", "bias", "router")] == [False] * 3
    assert [ends_kept.quantizes(k) for k in ("linear", "head", "embedding")] == [True, False, False]
    assert not scheme("q0f32").quantizes("linear")


def test_the_scheme_of_a_kind_of_layer() -> None:
    kn = scheme("q4f16_0")
    assert kn.for_kind("linear") is kn
    assert kn.for_kind("embedding").layout == kn.for_kind("experts").layout == "NK"
    assert scheme("q4f32_1").for_kind("norm").name == "q0f32"
    assert scheme("q4bf16_1z").for_kind("bias").compute == BF16
    assert scheme("q0f32").for_kind("linear").compute == F32


def test_docs_table_has_a_row_a_scheme() -> None:
    lines = docs_table().splitlines()
    assert len(lines) == len(SCHEMES) + 2
    assert "| q4f16_0z | 4 | f16 | 128 | KN | u8 | 16.75 |" in lines
    assert "| q0f32 | 32 | f32 | none | NK | none | 128 |" in lines
    assert len({line.count("|") for line in lines}) == 1
