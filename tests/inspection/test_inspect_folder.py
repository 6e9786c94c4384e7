"""The report on a model folder: sizes against what is on disk, and the receipt's errors."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "models"))

import tiny  # noqa: E402  (the models that other tests convert)

from sterna import inspection  # noqa: E402
from sterna.base.dtype import F16, F32, U8, U32  # noqa: E402
from sterna.base.errors import CheckpointError, ShapeMismatch, UsageError  # noqa: E402
from sterna.convert import ChatOptions, convert_weight, gen_config  # noqa: E402
from sterna.inspection.weights import StoredTensor, group_of, weights_of  # noqa: E402

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """convert(scheme) makes a model folder, once a scheme."""
    root, made = tmp_path_factory.mktemp("models"), {}
    source = root / "SRC"
    config = tiny.VARIANTS["llama2-gqa"]
    tiny.write_folder(source, config, tiny.weights(config))
    for name in TOKENIZER:
        shutil.copy(REPO / "src" / "sterna" / "demo" / name, source / name)

    def build(scheme):
        if scheme not in made:
            made[scheme] = root / scheme
            convert_weight(source, made[scheme], quantization=scheme)
            gen_config(source, made[scheme], quantization=scheme, options=ChatOptions())
        return made[scheme]

    return build


def total(text):
    return next(line for line in text.splitlines() if line.startswith("total")).split()


@pytest.mark.parametrize("scheme", ["q0f16", "q0f32", "q4f16_1", "q4f16_0", "q3f16_1z", "q8f16_1"])
def test_sizes_are_those_on_disk(scheme, convert):
    folder = convert(scheme)
    receipt = json.loads((folder / "sterna.json").read_text())["receipt"]
    text = inspection.report(folder)
    assert max(len(line) for line in text.splitlines()) <= 100
    words = total(text)
    assert words[1:3] == [str(len(receipt["weights"])), f"{receipt['total']['parameters']:,}"]
    assert words[-1] == f"{receipt['bits_per_weight']:.2f}"
    ratio = 2 * receipt["total"]["parameters"] / receipt["total"]["bytes"]
    assert words[-3] == f"{ratio:.2f}"
    shards = sum(path.stat().st_size for path in folder.glob("params_shard_*.bin"))
    assert receipt["total"]["bytes"] == shards


def test_groups_and_schemes(convert):
    text = inspection.report(convert("q4f16_1"))
    firsts = [line.split()[0] for line in text.splitlines() if re.search(r"\d%  ", line)]
    for name in ("q4f16_1", "q0f16", "embedding", "attention", "mlp", "norm"):
        assert name in firsts
    assert "other" not in firsts


def test_errors_come_from_the_receipt(convert):
    text = inspection.report(convert("q4f16_1"))
    receipt = json.loads((convert("q4f16_1") / "sterna.json").read_text())["receipt"]
    _, _, errors = text.partition("\nError against the source\n")
    overall = total(errors)
    assert overall[-1] == f"{receipt['total']['error']['relative_rms']:.2%}"
    assert overall[2] == f"{receipt['total']['error']['max_abs']:.2e}"
    worst = max(receipt["weights"], key=lambda n: receipt["weights"][n]["error"]["relative_rms"])
    assert errors.partition("Largest errors")[2].splitlines()[4].split()[0] == worst


def test_an_exact_model_says_so(convert):
    assert "Every weight is stored exactly" in inspection.report(convert("q0f32"))


def test_a_page_lists_every_weight(convert):
    page = inspection.html(convert("q4f16_1"))
    assert "<svg" in page
    assert page.count("model.layers.1.mlp.down_proj.weight") >= 2


def test_a_folder_without_a_receipt(convert, tmp_path):
    folder = tmp_path / "M"
    shutil.copytree(convert("q4f16_1"), folder)
    (folder / "sterna.json").unlink()
    text = inspection.report(folder)
    assert total(text) == total(inspection.report(convert("q4f16_1")))
    assert "Error against" not in text


def test_a_family_that_is_not_known_is_counted_in_groups(convert, tmp_path):
    folder = tmp_path / "M"
    shutil.copytree(convert("q4f16_1"), folder)
    (folder / "sterna.json").unlink()
    path = folder / "mlc-chat-config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gpt_neox"}))
    assert "a gpt_neox model in q4f16_1" in inspection.report(folder)


def test_a_context_is_for_libraries(convert):
    with pytest.raises(UsageError, match="--context 5 is about the costs of a compiled library"):
        inspection.report(convert("q0f16"), 5)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "no converted model"),
        (lambda f: (f / "mlc-chat-config.json").unlink(), "sterna gen_config"),
        (lambda f: (f / "params_shard_0.bin").unlink(), "is not in"),
        (lambda f: (f / "params_shard_0.bin").write_bytes(b"short"), "5 bytes"),
        (lambda f: (f / "sterna.json").write_text("{"), "sterna.json"),
        (lambda f: _receipt(f, {"weights": {"a": 1}}), "receipt in .* is malformed"),
        (lambda f: _receipt(f, []), "receipt in .* is malformed"),
    ],
)
def test_folders_that_are_no_model(spoil, sentence, convert, tmp_path):
    folder = tmp_path / "M"
    shutil.copytree(convert("q4f16_1"), folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=sentence):
        inspection.report(folder)


def _receipt(folder, value):
    path = folder / "sterna.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "receipt": value}))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.layers.0.self_attn.qkv_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.10.mlp.gate_up_proj.weight", "mlp"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("model.norm.weight", "norm"),
        ("weight", "other"),
    ],
)
def test_groups_of_names(name, group):
    assert group_of(name) == group


def _parts(words, scales, zeros=0):
    yield StoredTensor("a.q_weight", U32, words, 4)
    yield StoredTensor("a.q_scale", F16, scales, 2)
    if zeros:
        yield StoredTensor("a.q_zero", U8, scales, zeros)


@pytest.mark.parametrize(
    ("scheme", "words", "scales", "label", "parameters"),
    [
        ("q4f16_1", (8, 16), (8, 4), "q4f16_1", 8 * 128),
        ("q4f16_1z", (8, 16), (8, 4), "q4f16_1z", 8 * 128),
        ("q4f16_0", (16, 8), (4, 8), "q4f16_0, groups of 32", 8 * 128),  # as MLC writes it
        ("q3f16_1", (8, 16), (8, 4), "q3f16_1, groups of 40", 8 * 160),  # as MLC writes it
        ("q3f16_1", (8, 12), (8, 4), "q3f16_1", 8 * 128),
    ],
)
def test_packed_weights_of_every_layout(scheme, words, scales, label, parameters):
    zeros = 5 if scheme.endswith("z") else 0
    (found,) = weights_of(_parts(words, scales, zeros), scheme, {})
    assert (found.name, found.scheme, found.parameters) == ("a.weight", label, parameters)
    assert found.bytes == 6 + zeros


def test_shapes_that_are_known_win():
    (found,) = weights_of(_parts((8, 16), (8, 4)), "q4f16_1", {"a.weight": (8, 100)})
    assert found.parameters == 800


@pytest.mark.parametrize(
    ("scheme", "tensors"),
    [
        ("q4f16_1", [*_parts((8, 16), (8, 3))]),
        ("q4f16_1", [*_parts((8, 16), (8, 0))]),
        ("q0f16", [*_parts((8, 16), (8, 4))]),
        ("q4f16_1", [StoredTensor("a.q_scale", F32, (8,), 4)]),
    ],
)
def test_parts_that_do_not_fit(scheme, tensors):
    with pytest.raises(ShapeMismatch, match=r"the weight a\.weight has"):
        weights_of(tensors, scheme, {})


def test_the_real_model(shared, tmp_path):
    source = shared / "models" / "stories260K-hf"
    out = tmp_path / "M"
    convert_weight(source, out, quantization="q4f16_1")
    gen_config(source, out, quantization="q4f16_1", options=ChatOptions())
    assert "a llama model in q4f16_1" in inspection.report(out)
