"""Converted weights read back as the source's, up to what the scheme says it costs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from source_folder import ROUND, Make, contents

from sterna.base.dtype import F32
from sterna.checkpoint.mlc import check_md5, read_mlc_folder
from sterna.checkpoint.model_folder import open_model
from sterna.checkpoint.safetensors import open_safetensors
from sterna.checkpoint.tensor import TensorRef
from sterna.convert import ConvertProgress, convert_weight, format_receipt, gen_config, pack_rows
from sterna.models.params import StoredWeight, stored_weights
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, scheme

# Relative error of uniformly drawn weights, which fill a group's range: a bound for each width.
RELATIVE = {3: 0.2, 4: 0.09, 8: 0.006, 16: 0.004, 32: 0.0}


def stacked(weight: StoredWeight, tensors: tiny.Weights) -> np.ndarray[Any, Any]:
    return np.concatenate([tensors[name] for name in weight.sources])


def converted(source: Path, quantization: str, name: str = "OUT") -> Path:
    output = source.with_name(name)
    convert_weight(source, output, quantization=quantization)
    gen_config(source, output, quantization=quantization)
    return output


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_reads_back(make: Make, name: str) -> None:
    tensors = tiny.weights(ROUND)
    model = open_model(converted(make(ROUND), name))
    for weight in stored_weights(ROUND, scheme(name)):
        original = stacked(weight, tensors)
        parts = {part: model.tensors[weight.tensor_name(part)].read() for part in weight.parts}
        if weight.scheme.is_quantized:
            wanted = quantize(original, weight.scheme)
            assert (parts["q_weight"] == wanted["q_weight"]).all()
            restored = dequantize(parts, weight.scheme, weight.shape)
        else:
            (restored,) = (part.astype(np.float32) for part in parts.values())
        off = np.sqrt(np.mean((restored - original) ** 2) / np.mean(original**2))
        short = scheme(name).is_quantized and scheme(name).compute == F32  # bf16 on disk
        assert off <= (0.004 if short else 0.0) + RELATIVE[weight.scheme.bits]
    assert set(model.tensors) == {
        t for weight in stored_weights(ROUND, scheme(name)) for t in weight.tensors
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_measured_bits_are_those_of_the_table(make: Make, name: str) -> None:
    source = make(ROUND)
    receipt = convert_weight(source, source.with_name("OUT"), quantization=name)
    kinds = {total.kind: total for total in receipt.kinds}
    for kind in ("linear", "embedding", "head"):
        assert kinds[kind].bits_per_weight == scheme(name).bits_per_weight
    on_disk = sum(p.stat().st_size for p in source.with_name("OUT").glob("params_shard_*.bin"))
    assert receipt.total.bytes == on_disk
    assert receipt.bits_per_weight == 8 * on_disk / sum(
        w.size for w in tiny.weights(ROUND).values()
    )


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_q0f32_is_the_source_bit_for_bit(make: Make, variant: str) -> None:
    config, tensors = tiny.VARIANTS[variant], tiny.weights(tiny.VARIANTS[variant])
    source = make(variant)
    receipt = convert_weight(source, source.with_name("OUT"), quantization="q0f32")
    gen_config(source, source.with_name("OUT"), quantization="q0f32")
    model = open_model(source.with_name("OUT"))
    for weight in stored_weights(config, scheme("q0f32")):
        assert np.array_equal(model.tensors[weight.name].read(), stacked(weight, tensors))
    assert receipt.total.error.max_abs == 0
    assert receipt.total.error.sqnr_db is None
    assert receipt.total.parameters == sum(t.size for t in tensors.values())


def test_source_dtypes(make: Make) -> None:
    for dtype in ("float16", "bfloat16"):
        source = make(name=dtype, dtype=dtype)
        receipt = convert_weight(source, source.with_name(f"{dtype}-out"), quantization="q0f32")
        assert receipt.total.error.max_abs == 0, "float32 holds every value of the narrower types"


def test_shards_make_no_difference(make: Make) -> None:
    one = converted(make(name="one"), "q4f16_1", "OUT1")
    three = converted(make(name="three", shards=3), "q4f16_1", "OUT3")
    assert contents(one) == contents(three)


def test_converting_twice_gives_the_same_bytes(make: Make) -> None:
    source = make()
    before = contents(converted(source, "q3f16_1"))
    assert contents(converted(source, "q3f16_1")) == before


@pytest.mark.parametrize("name", ["q4f16_1", "q4f16_0z", "q0bf16"])
def test_block_size_makes_no_difference(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = make("attention-bias")
    whole = open_model(converted(source, name, "whole"))
    monkeypatch.setattr(pack_rows, "BLOCK_BYTES", 700)
    blocks = open_model(converted(source, name, "blocks"))
    for tensor, ref in whole.tensors.items():
        assert (blocks.tensors[tensor].read() == ref.read()).all()


def test_tied_tensors_are_stored_once(make: Make) -> None:
    output = converted(make("llama3.2-tied"), "q4f16_1")
    names = read_mlc_folder(output).tensors
    assert not any(name.startswith("lm_head") for name in names)
    assert "model.embed_tokens.q_weight" in names


def test_tied_pair_under_either_name(make: Make) -> None:
    tensors = tiny.weights(tiny.VARIANTS["llama3.2-tied"])
    plain = contents(converted(make("llama3.2-tied"), "q4f16_1", "plain"))
    embedding = tensors["model.embed_tokens.weight"]
    both = make("llama3.2-tied", "both", {**tensors, "lm_head.weight": embedding * 2})
    receipt = convert_weight(both, both.with_name("OUT"), quantization="q4f16_1")
    assert "not used" in receipt.notes[0]
    assert "not used" in format_receipt(receipt)
    rest = {k: v for k, v in tensors.items() if k != "model.embed_tokens.weight"}
    head = make("llama3.2-tied", "head", {**rest, "lm_head.weight": embedding})
    receipt = convert_weight(head, head.with_name("HEAD"), quantization="q4f16_1")
    assert "serves as" in receipt.notes[0]
    for name in ("OUT", "HEAD"):
        shard = (head.with_name(name) / "params_shard_0.bin").read_bytes()
        assert shard == plain["params_shard_0.bin"]


def test_computed_tables_are_passed_over(make: Make) -> None:
    tensors = tiny.weights(tiny.VARIANTS["llama1"])
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    source = make("llama1", tensors=tensors)
    convert_weight(source, source.with_name("OUT"), quantization="q4f16_1")


def test_receipt_in_the_folder(make: Make) -> None:
    source = make()
    receipt = convert_weight(source, source.with_name("OUT"), quantization="q4f16_1")
    folder = source.with_name("OUT")
    sterna = json.loads((folder / "sterna.json").read_text())
    own = sterna["receipt"]
    assert sterna["config"] == json.loads((source / "config.json").read_text())
    assert own["bits_per_weight"] == receipt.bits_per_weight
    qkv = own["weights"]["model.layers.0.self_attn.qkv_proj.weight"]
    assert qkv["scheme"] == "q4f16_1"
    assert len(qkv["sources"]) == 3
    assert 0 < qkv["error"]["relative_rms"] < RELATIVE[4]
    assert own["total"]["error"]["sqnr_db"] > 20
    for shard in sterna["weights"]["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert shard["nbytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    text = format_receipt(receipt)
    assert "linear" in text
    assert f"{receipt.bits_per_weight:.3f}" in text


def test_error_is_what_a_reader_of_the_file_finds(make: Make) -> None:
    """Norms of q4f32_1 are cut to bfloat16 on disk, and the receipt says so."""
    source = make()
    receipt = convert_weight(source, source.with_name("OUT"), quantization="q4f32_1")
    gen_config(source, source.with_name("OUT"), quantization="q4f32_1")
    tensors = tiny.weights(tiny.VARIANTS["llama2-gqa"])
    model = open_model(source.with_name("OUT"))
    norm = model.tensors["model.norm.weight"].read()
    off = np.abs(norm.astype(np.float64) - tensors["model.norm.weight"]).max()
    (found,) = (w for w in receipt.weights if w.name == "model.norm.weight")
    assert found.error.max_abs == off > 0
    assert found.bytes == 2 * norm.size


def test_metadata_as_mlc_counts(make: Make) -> None:
    folder = converted(make(ROUND), "q4f32_1")
    model = read_mlc_folder(folder)
    check_md5(model)
    sizes = [np.prod(ref.shape) * ref.dtype.bytes for ref in model.tensors.values()]
    assert model.metadata["ParamBytes"] == sum(sizes)
    parameters = sum(tensor.size for tensor in tiny.weights(ROUND).values())
    assert model.metadata["BitsPerParam"] == pytest.approx(8 * sum(sizes) / parameters)


def test_progress_reaches_the_end(make: Make) -> None:
    source, told = make(), list[ConvertProgress]()
    convert_weight(source, source.with_name("OUT"), quantization="q4f16_1", progress=told.append)
    assert [step.weights_done for step in told] == list(range(1, told[0].weights_total + 1))
    assert told[-1].bytes_done == told[-1].bytes_total
    assert told[-1].bytes_total == sum(t.nbytes for t in tiny.weights(tiny.LLAMA2).values())


def test_one_block_in_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is read whole: the largest read is a block, whatever the tensor's size."""
    reads: list[int] = []
    read = TensorRef.read

    def counted(ref: Any) -> Any:
        reads.append(ref.nbytes)
        return read(ref)

    monkeypatch.setattr(TensorRef, "read", counted)
    monkeypatch.setattr(pack_rows, "BLOCK_BYTES", 1024)
    source = make()
    convert_weight(source, source.with_name("OUT"), quantization="q4f16_1")
    assert max(reads) <= 1024
    assert sum(reads) == sum(t.nbytes for t in tiny.weights(tiny.LLAMA2).values())


def test_real_model_in_every_scheme(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K-hf"
    tensors = {k: ref.read() for k, ref in open_safetensors(source / "model.safetensors").items()}
    exact = convert_weight(source, tmp_path / "q0f32", quantization="q0f32")
    gen_config(source, tmp_path / "q0f32", quantization="q0f32")
    model = open_model(tmp_path / "q0f32")
    for weight in stored_weights(model.config, scheme("q0f32")):
        assert np.array_equal(model.tensors[weight.name].read(), stacked(weight, tensors))
    assert exact.total.parameters == 260_032
    errors = {}
    for name in ("q3f16_1", "q4f16_1", "q4f16_1z", "q8f16_1", "q0f16"):
        receipt = convert_weight(source, tmp_path / name, quantization=name)
        errors[name] = receipt.total.error.relative_rms
    assert sorted(errors, key=errors.__getitem__, reverse=True) == list(errors)
    assert errors["q4f16_1"] < 0.1
