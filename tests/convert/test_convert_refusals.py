"""Bad input ends in one sentence before anything is written over."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from source_folder import Make, contents, edit_config

from sterna.base.errors import (
    CheckpointError,
    Error,
    MissingTensor,
    ShapeMismatch,
    UnexpectedTensor,
    UnsafeFile,
    UnsupportedModel,
    UsageError,
)
from sterna.checkpoint.safetensors import write_safetensors
from sterna.convert import convert_weight, gen_config

CONFIG = tiny.VARIANTS["llama2-gqa"]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def rewritten(source: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors: dict[str, np.ndarray] = dict(tiny.weights(CONFIG))
    change(tensors)
    write_safetensors(source / "model.safetensors", tensors)


def missing_shard(source: Path) -> None:
    next(source.glob("model-00002*")).unlink()


def truncated_shard(source: Path) -> None:
    path = next(source.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-1000])


def lying_index(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.ghost"] = next(iter(index["weight_map"].values()))
    (source / INDEX).write_text(json.dumps(index))


def escaping_index(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][Q_PROJ] = "../../secret.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def pickle_only(source: Path) -> None:
    for path in source.glob("model*"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02")


SHARDED: dict[str, tuple[Callable[[Path], object], type[Error], str]] = {
    "missing shard": (missing_shard, MissingTensor, "model-00002-of-00003"),
    "truncated shard": (truncated_shard, UnsafeFile, "truncated"),
    "index names a tensor in vain": (lying_index, MissingTensor, "model.ghost"),
    "index leaves the folder": (escaping_index, UnsafeFile, "secret"),
    "pickle": (pickle_only, UnsafeFile, "pickle.*safe_serialization"),
    "unknown family": (
        lambda s: edit_config(s, model_type="mamba", architectures=["MambaForCausalLM"]),
        UnsupportedModel,
        "'mamba'.*llama",
    ),
    "another task": (
        lambda s: edit_config(s, architectures=["LlamaForSequenceClassification"]),
        UnsupportedModel,
        "LlamaForSequenceClassification",
    ),
    "an option this forward pass has not": (
        lambda s: edit_config(s, qk_norm=True),
        UnsupportedModel,
        "qk_norm",
    ),
    "quantized by another tool": (
        lambda s: edit_config(s, quantization_config={"quant_method": "quanto"}),
        UnsupportedModel,
        "quanto",
    ),
    "more layers than any model": (
        lambda s: edit_config(s, num_hidden_layers=2**31 - 1),
        CheckpointError,
        "num_hidden_layers",
    ),
    "a head wider than memory": (
        lambda s: edit_config(s, head_dim=2**31 - 2),
        CheckpointError,
        "head_dim",
    ),
    "config of a wider model": (
        lambda s: edit_config(s, intermediate_size=192),
        ShapeMismatch,
        r"gate_proj.*\[128, 64\].*\[192, 64\]",
    ),
    "config of a deeper model": (
        lambda s: edit_config(s, num_hidden_layers=4),
        MissingTensor,
        r"layers\.3\..*and 8 more",
    ),
    "config of a shallower model": (
        lambda s: edit_config(s, num_hidden_layers=2),
        UnexpectedTensor,
        r"layers\.2\..*and 8 more",
    ),
    "config that calls for biases": (
        lambda s: edit_config(s, attention_bias=True),
        MissingTensor,
        r"q_proj\.bias",
    ),
    "config that is no JSON": (
        lambda s: (s / "config.json").write_text("{"),
        UnsafeFile,
        "not valid JSON",
    ),
    "no config": (lambda s: (s / "config.json").unlink(), CheckpointError, "no config.json"),
    "no model type": (
        lambda s: edit_config(s, model_type=None),
        CheckpointError,
        "no model_type",
    ),
}


@pytest.mark.parametrize("case", SHARDED)
def test_bad_folder(make: Make, case: str) -> None:
    spoil, kind, words = SHARDED[case]
    source = make(shards=3)
    spoil(source)
    refused(source, kind, words)


def refused(source: Path, kind: type[Error], words: str, quantization: str = "q4f16_1") -> None:
    with pytest.raises(kind, match=words) as caught:
        convert_weight(source, source.with_name("OUT"), quantization=quantization)
    assert caught.type is kind
    assert "\n" not in str(caught.value)
    assert [path.name for path in source.parent.iterdir()] == [source.name], "nothing left behind"


def test_what_there_is_instead_is_named(make: Make) -> None:
    """As in older checkpoints of RWKV-7, whose x_x holds what newer ones have apart."""
    source = make()
    rewritten(source, lambda tensors: tensors.update({"model.x_x": tensors.pop(Q_PROJ)}))
    refused(source, MissingTensor, "q_proj.weight, .*, which holds model.x_x instead")


def _without(tensors: dict[str, np.ndarray]) -> None:
    del tensors[Q_PROJ]


def _extra(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)


def _integers(tensors: dict[str, np.ndarray]) -> None:
    tensors[Q_PROJ] = np.ones((64, 64), np.int8)


def _transposed(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()


def _flat(tensors: dict[str, np.ndarray]) -> None:
    tensors[Q_PROJ] = tensors[Q_PROJ].reshape(-1)


def _nan(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"][3] = np.nan


def _infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors[Q_PROJ][5, 7] = np.inf


def _huge(tensors: dict[str, np.ndarray]) -> None:
    tensors[Q_PROJ][5, 7] = 1e6


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], type[Error], str]] = {
    "missing tensor": (_without, MissingTensor, Q_PROJ),
    "unexpected tensor": (_extra, UnexpectedTensor, "q_norm"),
    "wrong dtype": (_integers, ShapeMismatch, "i8"),
    "wrong shape": (_transposed, ShapeMismatch, r"lm_head.*\[64, 160\].*\[160, 64\]"),
    "wrong rank": (_flat, ShapeMismatch, r"\[4096\].*\[64, 64\]"),
    "NaN": (_nan, UnsafeFile, "model.norm.weight.*NaN"),
    "infinity": (_infinite, UnsafeFile, f"{Q_PROJ}.*infinite"),
    "out of the scheme's range": (_huge, UsageError, "1e\\+06.*q4bf16_1"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_bad_tensors(make: Make, case: str) -> None:
    change, kind, words = TENSORS[case]
    source = make()
    rewritten(source, change)
    refused(source, kind, words)


def test_wide_range_fits_bf16(make: Make) -> None:
    source = make()
    rewritten(source, _huge)
    convert_weight(source, source.with_name("OUT"), quantization="q4bf16_1")


def test_unknown_quantization(make: Make) -> None:
    source = make()
    refused(source, UsageError, "did you mean 'q4f16_1'", "q4f16-1")
    refused(source, UsageError, "reads but does not write", "q4f16_2")


def test_model_type_option(make: Make) -> None:
    source = make()
    with pytest.raises(UsageError, match=r"'mistral' was asked.*says 'llama'"):
        convert_weight(source, source / "O", quantization="q0f16", model_type="mistral")
    with pytest.raises(UsageError, match="'gpt9' is not known"):
        convert_weight(source, source / "O", quantization="q0f16", model_type="gpt9")
    edit_config(source, model_type="my_own_llama")
    with pytest.raises(UnsupportedModel, match="my_own_llama"):
        convert_weight(source, source.with_name("OUT"), quantization="q0f16")
    convert_weight(source, source.with_name("OUT"), quantization="q0f16", model_type="llama")
    gen_config(source, source.with_name("OUT"), quantization="q0f16", model_type="llama")


def test_sources_that_are_no_model(tmp_path: Path, make: Make) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        convert_weight(tmp_path / "nowhere", tmp_path / "O", quantization="q0f16")
    source = make()
    output = tmp_path / "OUT"
    convert_weight(source, output, quantization="q0f16")
    with pytest.raises(UsageError, match="converted model already"):
        convert_weight(output, tmp_path / "O", quantization="q4f16_1")


def test_the_source_itself_is_never_written_over(make: Make) -> None:
    source = make()
    before = contents(source)
    for command in (convert_weight, gen_config):
        with pytest.raises(UsageError, match="holds other things"):
            command(source, source, quantization="q4f16_1")
    assert contents(source) == before
