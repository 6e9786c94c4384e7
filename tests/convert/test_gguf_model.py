"""GGUF metadata in Hugging Face's words: vocabulary, configuration, names; and lies in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tokenizers

from sterna import models
from sterna.base.errors import (
    CheckpointError,
    Error,
    TokenizerError,
    UnsafeFile,
    UnsupportedModel,
    UsageError,
)
from sterna.checkpoint.gguf import GgufFile, open_gguf
from sterna.checkpoint.model_folder import open_model
from sterna.convert import convert_weight, gen_config, source_folder
from sterna.convert.gguf_architectures import ARCHITECTURES
from sterna.convert.gguf_model import config_json, file_type, generation_config_json
from sterna.convert.gguf_vocabulary import (
    end_ids,
    greedy_vocabulary,
    is_greedy,
    tokenizer_config,
    tokenizer_json,
)
from sterna.text.chat_template import ChatTemplate
from sterna.text.greedy import FILE
from sterna.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

from gguf_source import WHOLE, write_gguf  # noqa: E402

SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))


def loaded(metadata: Any, folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    for name, make in (("tokenizer.json", tokenizer_json), ("tokenizer_config.json",
                                                             tokenizer_config)):  # fmt: skip
        (folder / name).write_text(json.dumps(make(metadata, "file")))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_vocabularies_give_the_golden_ids(name: str, shared: Path, tmp_path: Path) -> None:
    file = open_gguf(shared / "gguf-vocab" / f"ggml-vocab-{name}.gguf")
    tokenizer = loaded(file.metadata, tmp_path / "t")
    goldens = shared / "tokenizer-goldens"
    texts = (goldens / "vocab-test.inp").read_text().split(SEPARATOR)
    ids = [[int(i) for i in line.split()] for line in
           (goldens / f"{name}.out").read_text().splitlines()]  # fmt: skip
    assert len(ids) > 40
    for text, wanted in zip(texts, ids, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False) == wanted
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.decode(tokenizer.encode("Hello  world\n")) == "Hello  world\n"


def test_the_chat_template_comes_along(shared: Path, tmp_path: Path) -> None:
    file = open_gguf(shared / "gguf-vocab" / "ggml-vocab-phi-3.gguf")
    loaded(file.metadata, tmp_path / "t")
    template = ChatTemplate.load(tmp_path / "t")
    assert template is not None
    found = template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert found == "<s><|user|>\nHi<|end|>\n<|assistant|>\n"
    assert end_ids(file.metadata, "file") == [32000, 32007]  # <|endoftext|> and <|end|>


@pytest.mark.parametrize(
    ("model", "pre"),
    [
        ("gpt2-xl", "gpt-2"),
        ("SmolLM-135M-seqcls", "smollm"),
        pytest.param("Qwen3-30B-A3B", "qwen2", marks=pytest.mark.slow),
        pytest.param("Meta-Llama-3-8B-Instruct", "llama-bpe", marks=pytest.mark.slow),
    ],
)
def test_byte_level_vocabularies_are_the_tokenizers(
    model: str, pre: str, shared: Path, tmp_path: Path
) -> None:
    """tokenizer.json taken apart as llama.cpp's converter does, and put together again."""
    path = shared / "configs" / model / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"needs {model}'s tokenizer.json")
    whole = json.loads(path.read_text())
    vocab = dict(whole["model"]["vocab"])
    kinds = dict.fromkeys(vocab, 1)
    for token in whole["added_tokens"]:
        vocab[token["content"]] = token["id"]
        kinds[token["content"]] = 3 if token["special"] else 4
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([kinds[t] for t in tokens]),
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    ours = loaded(metadata, tmp_path / "t")
    theirs = Tokenizer.load(path.parent)
    texts = (shared / "tokenizer-goldens" / "vocab-test.inp").read_text().split(SEPARATOR)
    for text in texts:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )


def vocabulary(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "llama", "tokens": ["<unk>", "<s>", "</s>", "▁", "a"],
        "scores": np.zeros(5, np.float32), "token_type": np.array([2, 3, 3, 1, 1]),
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return {f"tokenizer.ggml.{k}": v for k, v in {**base, **changes}.items() if v is not None}


VOCABULARY_LIES: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"model": None}, "of the kind"),
    "other kind": ({"model": "plamo2"}, "'plamo2'"),
    "bert without marks": ({"model": "bert"}, "unknown_token_id, nor"),
    "unigram without scores": ({"model": "t5", "scores": None}, "no cut is best"),
    "unigram without unknown": (
        {"model": "t5", "token_type": np.ones(5)},
        "no token for unknown text",
    ),
    "charsmap of text": ({"model": "t5", "precompiled_charsmap": "abc"}, "no bytes"),
    "huge charsmap": (
        {"model": "t5", "precompiled_charsmap": np.zeros(5 << 20, np.uint8)},
        "at most",
    ),
    "bytes of rwkv": ({"model": "rwkv", "tokens": ["<s>", "a", "b", "\\x4", "c"]}, "damaged"),
    "end of rwkv": ({"model": "rwkv", "tokens": ["<s>", "a", "b", "\\", "c"]}, "damaged"),
    "no tokens": ({"tokens": None}, "no tokenizer.ggml.tokens"),
    "tokens are numbers": ({"tokens": np.zeros(5)}, "no tokenizer.ggml.tokens"),
    "twice": ({"tokens": ["a", "a", "b", "c", "d"]}, "twice"),
    "no scores": ({"scores": None}, "no tokenizer.ggml.scores"),
    "too few scores": ({"scores": np.zeros(4)}, "a number for each"),
    "too few types": ({"token_type": np.zeros(4)}, "a number for each"),
    "long piece": ({"tokens": ["<unk>", "<s>", "</s>", "▁", "a" * 600]}, "600 characters"),
    "start outside": ({"bos_token_id": 99}, "bos_token_id 99"),
    "end is text": ({"eos_token_id": "</s>"}, "eos_token_id"),
    "cut": ({"model": "gpt2", "merges": ["a b"], "pre": "martian"}, "martian"),
    "no merges": ({"model": "gpt2", "pre": "qwen2"}, "no tokenizer.ggml.merges"),
    "broken merge": ({"model": "gpt2", "pre": "qwen2", "merges": ["a"]}, "damaged"),
    "merge of nothing": ({"model": "gpt2", "pre": "qwen2", "merges": ["a z"]}, "damaged"),
}


@pytest.mark.parametrize("lie", VOCABULARY_LIES)
def test_vocabularies_that_lie(lie: str) -> None:
    changes, words = VOCABULARY_LIES[lie]
    metadata = vocabulary(**changes)
    with pytest.raises(TokenizerError, match=words):
        both(metadata)


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("gpt-4o", ["Hello", "World", " isn't", " ", "123", "45", "./", "NASA's"]),
        ("llama4", ["Hello", "World", " isn't", " ", "123", "45", "./", "NASA's"]),
        ("glm4", ["HelloWorld", " isn", "'t", " ", "123", "45", "./", "NASA", "'s"]),
        ("qwen2", ["HelloWorld", " isn", "'t", " ", *"12345", "./", "NASA", "'s"]),
        ("deepseek-v3", ["HelloWorld", " isn", "'t", " ", "123", "45", "./", "NASA", "'s"]),
        ("deepseek-llm", ["HelloWorld", " isn", "'", "t", " ", "12345", "./", "NASA", "'", "s"]),
        ("deepseek-coder", ["HelloWorld", " isn", "'", "t", " ", *"12345", "./", "NASA", "'", "s"]),
        ("falcon", ["HelloWorld", " isn", "'", "t", " ", "123", "45", "./", "NASA", "'", "s"]),
    ],
)
def test_words_are_cut_as_the_file_names_it(pre: str, wanted: list[str]) -> None:
    assert cut(pre, "HelloWorld isn't 12345./NASA's") == wanted


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("deepseek-v3", ["ä", "日本ひら", "x한국", "。"]),
        ("deepseek-llm", ["ä", "日本ひら", "x", "한국", "。"]),
        ("deepseek-coder", ["ä", "日本ひら", "x", "한국", "。"]),
    ],
)
def test_scripts_are_cut_as_the_file_names_it(pre: str, wanted: list[str]) -> None:
    assert cut(pre, "ä日本ひらx한국。") == wanted


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [("qwen2", ["na", "\u0308ve", " \u0308", "x"]), ("qwen35", ["na\u0308ve", " \u0308x"])],
)
def test_marks_are_cut_as_the_file_names_it(pre: str, wanted: list[str]) -> None:
    assert cut(pre, "na\u0308ve \u0308x") == wanted


def cut(pre: str, text: str) -> list[str]:
    level = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizer_json(vocabulary(
        model="gpt2", pre=pre, merges=["h e"], tokens=[*level, "he"], scores=None, token_type=None,
        bos_token_id=None, eos_token_id=None, unknown_token_id=None,
    ), "file")  # fmt: skip
    backend = tokenizers.Tokenizer.from_str(json.dumps(made))
    cuts = backend.pre_tokenizer.pre_tokenize_str(text)
    return [text[a:b] for _, (a, b) in cuts]


@pytest.mark.parametrize("capitals", [False, True])
def test_word_pieces_are_berts(capitals: bool, tmp_path: Path) -> None:
    """What llama.cpp's converter makes of vocab.txt gives the ids of the tokenizers' own BERT."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["he", "##llo", "world", "##s", "cafe", ",", "!", "中", "[unused0]"]
    vocab = [*marks, *words, *(["He", "Wor"] if capitals else [])]
    phantom = [t if t in marks else t[2:] if t.startswith("##") else f"▁{t}" for t in vocab]
    metadata = vocabulary(
        model="bert", tokens=phantom, scores=None, bos_token_id=None, eos_token_id=None,
        token_type=np.array([3 if t in marks else 1 for t in vocab]),
        **{f"{name}_token_id": i for i, name in enumerate(("padding", "unknown", "cls"))},
        seperator_token_id=3,
    )  # fmt: skip
    ours = loaded(metadata, tmp_path / "t")
    theirs = tokenizers.BertWordPieceTokenizer(
        {t: i for i, t in enumerate(vocab)}, lowercase=not capitals
    )
    for text in ("Hello, worlds!", "Café 中中 hello[SEP]", "", "xyz Hes", "HELLO world"):
        theirs._tokenizer.encode_special_tokens = True
        assert ours.encode(text) == theirs.encode(text).ids
    assert len(set(ours.encode("Hello Café"))) > 3


def test_unigram_takes_the_best_cut(tmp_path: Path) -> None:
    pieces = {"<s>": 0, "<pad>": 0, "</s>": 0, "<unk>": 0, "▁": -3, "▁he": -2, "llo": -2,
              "▁hel": -1, "lo": -4, "l": -5, "o": -5, "▁x": -1.5}  # fmt: skip
    metadata = vocabulary(
        model="t5", tokens=list(pieces), scores=np.array(list(pieces.values()), np.float32),
        token_type=np.array([3, 3, 3, 2] + [1] * 8), bos_token_id=0, eos_token_id=2,
        unknown_token_id=3, add_bos_token=True,
    )  # fmt: skip
    ours = loaded(metadata, tmp_path / "t")
    ids = {piece: i for i, piece in enumerate(pieces)}
    # "▁he" + "llo" (-4) is better than "▁hel" + "lo" (-5)
    assert ours.encode("hello  x") == [0, ids["▁he"], ids["llo"], ids["▁x"], 2]
    assert ours.encode("q", add_special_tokens=False) == [ids["▁"], 3]
    assert ours.decode(ours.encode("hello x")) == "hello x"
    damaged = {**metadata, "tokenizer.ggml.precompiled_charsmap": np.full(7, 255, np.uint8)}
    with pytest.raises(TokenizerError, match="damaged"):
        loaded(damaged, tmp_path / "d")


def test_rwkvs_vocabulary_comes_back(tmp_path: Path) -> None:
    words = [bytes([i]) for i in range(256)] + [
        b"it's",
        b'say "',
        "é中".encode(),
        b"\\x41",
        b"\n\n",
    ]
    tokens = ["<s>", *(repr(word)[2:-1] for word in words), "[PAD262]"]
    metadata = vocabulary(
        model="rwkv", tokens=tokens, scores=None, bos_token_id=0, eos_token_id=0, eot_token_id=261,
        token_type=np.array([3, *[1] * len(words), 5]), add_bos_token=False,
    )  # fmt: skip
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / FILE).write_text(greedy_vocabulary(metadata, "file"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(metadata, "file")))
    ours = Tokenizer.load(folder)
    text = "it's\n\nsay \"é中\\x41"
    assert ours.encode(text) == [257, 261, 258, 259, 260]
    assert ours.decode(ours.encode(text)) == text
    assert end_ids(metadata, "file") == [0, 261]


def both(metadata: dict[str, Any]) -> None:
    if is_greedy(metadata):
        greedy_vocabulary(metadata, "file")
    else:
        tokenizer_json(metadata, "file")
    tokenizer_config(metadata, "file")


def described(arch: str = "llama", **changes: Any) -> GgufFile:
    keys = {
        "context_length": 128, "embedding_length": 64, "block_count": 2, "feed_forward_length": 128,
        "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    }  # fmt: skip
    metadata = {"general.architecture": arch} | {
        f"{arch}.{k}": v for k, v in {**keys, **changes}.items() if v is not None
    }
    return GgufFile(Path("file.gguf"), MappingProxyType(metadata), MappingProxyType({}))


def test_configuration() -> None:
    config = config_json(described(**{"rope.freq_base": 500000.0, "attention.key_length": 32}))
    assert config["model_type"] == "llama"
    assert config["head_dim"] == 32
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 500000.0
    assert config["num_key_value_heads"] == 2
    assert config["tie_word_embeddings"] is True


MORE: dict[str, Any] = {
    "attention.kv_lora_rank": 16, "rope.dimension_count": 16, "attention.key_length_mla": 24,
    "attention.value_length_mla": 16, "ssm.inner_size": 128, "ssm.time_step_rank": 4,
    "ssm.state_size": 8, "ssm.conv_kernel": 4, "wkv.head_size": 16, "attention.decay_lora_rank": 8,
    "attention.iclr_lora_rank": 8, "attention.value_residual_mix_lora_rank": 8,
    "attention.gate_lora_rank": 8, "expert_feed_forward_length": 16,
    "ssm.group_count": 2,
}  # fmt: skip


def test_every_architecture_has_a_configuration() -> None:
    for arch in ARCHITECTURES:
        hybrid = {"attention.head_count_kv": np.array([0, 2])} if arch == "granitehybrid" else {}
        found = config_json(described(arch, **MORE, **hybrid))
        read = models.family(found)
        assert set(found["architectures"]) <= set(read.ARCHITECTURES)
        read.read_config({**found, "vocab_size": 64})


def test_scalings() -> None:
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32}  # fmt: skip
    assert config_json(described("qwen2", **yarn))["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip


def mixed(**changes: Any) -> GgufFile:
    base = {**MORE, "attention.head_count_kv": np.array([0, 2])}
    return described("granitehybrid", **{**base, **changes})


CONFIG_LIES: dict[str, tuple[Callable[[], GgufFile], type[Error], str]] = {
    "architecture": (lambda: described("mamba"), UnsupportedModel, "'mamba'"),
    "no layers": (lambda: described(block_count=None), UnsafeFile, "block_count"),
    "layers are text": (lambda: described(block_count="2"), UnsafeFile, "block_count"),
    "minus": (lambda: described(embedding_length=-64), UnsafeFile, "embedding_length"),
    "heads differ": (
        lambda: described(**{"attention.head_count_kv": np.array([2, 4])}),
        UnsupportedModel,
        "layer to layer",
    ),
    "eps": (
        lambda: described(**{"attention.layer_norm_rms_epsilon": float("nan")}),
        UnsafeFile,
        "epsilon",
    ),
    "pooling": (lambda: described("bert", pooling_type=4), UnsupportedModel, "pooling_type 4"),
    "no latent": (lambda: described("deepseek2"), UnsafeFile, "kv_lora_rank"),
    "nothing for the latent": (
        lambda: described("deepseek2", **{**MORE, "attention.key_length_mla": 16}),
        UnsafeFile,
        "none would be left",
    ),
    "mscale": (
        lambda: described(
            "deepseek2",
            **MORE,
            **{"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": -1.0},
        ),
        UnsupportedModel,
        "below 0",
    ),
    "no states": (lambda: described("mamba2"), UnsafeFile, "ssm.inner_size"),
    "states of no width": (
        lambda: described("mamba2", **{**MORE, "ssm.inner_size": 100}),
        UnsupportedModel,
        "multiples",
    ),
    "heads of one layer": (
        lambda: mixed(**{"attention.head_count_kv": np.array([2])}),
        UnsafeFile,
        "each of 2 layers",
    ),
    "heads of each layer": (
        lambda: mixed(**{"attention.head_count_kv": np.array([1, 2])}),
        UnsupportedModel,
        "2 numbers of key heads",
    ),
    "no heads at all": (
        lambda: mixed(**{"attention.head_count_kv": np.array([0, 0])}),
        UnsupportedModel,
        "0 numbers of key heads",
    ),
    "minus heads": (
        lambda: mixed(**{"attention.head_count_kv": np.array([-1, 2])}),
        UnsafeFile,
        "each of 2 layers",
    ),
    "windows": (
        lambda: described(
            "cohere2", **{"attention.sliding_window_pattern": np.array([True, False, True])}
        ),
        UnsafeFile,
        "each of 2 layers",
    ),
    "no ranks": (lambda: described("rwkv7"), UnsafeFile, "head_size"),
    "values differ from keys": (
        lambda: described(**{"attention.key_length": 32, "attention.value_length": 64}),
        UnsupportedModel,
        "different lengths",
    ),
}


@pytest.mark.parametrize("lie", CONFIG_LIES)
def test_configurations_that_lie(lie: str) -> None:
    make, kind, words = CONFIG_LIES[lie]
    with pytest.raises(kind, match=words):
        config_json(make())


def test_kept_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_gguf(path, WHOLE, lambda name: "F16")
    folder = source_folder(path)
    assert folder.name == "tiny"
    assert source_folder(path) == folder  # unfolded once
    assert file_type(open_gguf(path)) == "mixed"
    assert generation_config_json(open_gguf(path))["eos_token_id"] == 2
    receipt = convert_weight(path, tmp_path / "out", quantization="stored")
    assert receipt.total.error.max_abs == 0
    gen_config(path, tmp_path / "out", quantization="stored")
    model = open_model(tmp_path / "out")
    qkv = model.tensors["model.layers.0.self_attn.qkv_proj.weight"].read()
    rows = weights["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(qkv[: len(rows)], rows)
    assert model.config["hidden_size"] == 256


def test_a_folder_of_one_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", WHOLE, lambda name: "F16")
    assert source_folder(tmp_path).name == "a"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"a\.gguf, b\.gguf"):
        source_folder(tmp_path)


def test_what_moved_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, WHOLE, lambda name: "F16")
    folder = source_folder(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        convert_weight(folder, tmp_path / "out", quantization="stored")


def test_tensors_without_a_name_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length",
                "attention.head_count"):  # fmt: skip
        writer.add_uint32(f"llama.{key}", 64)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "a"])
    writer.add_token_scores([0.0, 0.0])
    writer.add_tensor("blk.0.mystery.weight", np.zeros((4, 4), np.float32))
    for close in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):  # fmt: skip
        close()
    with pytest.raises(CheckpointError, match="mystery"):
        convert_weight(tmp_path / "a.gguf", tmp_path / "out", quantization="stored")
