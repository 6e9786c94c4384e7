"""Writes the corpus: for each reader good files and every lie that its tests know.

    PYTHONPATH=src python tests/fuzz/make_corpus.py

Files whose name begins with "good" are read; the others are refused. Files that a fuzzer found are
added by hand, named after what they do, and stay.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoint"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

import test_adapter_folder
import test_gguf
import test_greedy
import test_mlc_index
import test_safetensors
import test_tiktoken
import test_web_index
import tiny_families
from gguf_bytes import F32, STRING, U32, Gguf, array, value
from readers import CORPUS, DIGEST, safetensors_of
from run_kernel import NOTHING
from text_tokenizers import byte_fallback_json, byte_level_json

from sterna.base.target import parse_target
from sterna.codegen.bundle import build_bundle
from sterna.codegen.renderer import LibraryParts

MOST_BYTES = 8192  # of a file that is kept: lies of sheer size are made in their tests
Files = Iterator[tuple[str, bytes]]


def as_json(document: object) -> bytes:
    return json.dumps(document, indent=1).encode()


def gguf() -> Files:
    yield "good", bytes(Gguf())
    pairs = [("n", value(U32, 7)), ("words", array(STRING, ["x", "yz"])), ("f", value(F32, 0.5))]
    yield "good-pairs", bytes(Gguf(version=2, pairs=pairs))
    for lie, (file, _, _) in test_gguf.LIES.items():
        yield lie, bytes(file)


def safetensors() -> Files:
    yield "good", test_safetensors.small_file()
    for lie, (header, data) in test_safetensors.LIES.items():
        yield lie, test_safetensors.file_of(header, data)


def mlc_index() -> Files:
    good = test_mlc_index.shard(test_mlc_index.record())
    yield "good", as_json({"metadata": {}, "records": [good]})
    for lie, shard in test_mlc_index.LIES.items():
        yield lie, as_json({"metadata": {}, "records": [shard]})


def config() -> Files:
    for name in ("qwen3", "gemma3", "gpt2", "mixtral", "deepseek-v3"):
        good = dict(tiny_families.VARIANTS[name])
        yield f"good-{name}", as_json(good)
        yield f"{name}-of-another-kind", as_json({**good, "model_type": "../qwen3"})
        yield f"{name}-with-a-new-option", as_json({**good, "some_new_option": 1})
        yield f"{name}-of-huge-width", as_json({**good, "vocab_size": 1 << 70})


def tokenizer_json() -> Files:
    yield "good-byte-level", as_json(byte_level_json())
    yield "good-byte-fallback", as_json(byte_fallback_json())
    whole = byte_level_json()
    yield "no-model", as_json({k: v for k, v in whole.items() if k != "model"})
    yield (
        "ids-that-leave-holes",
        as_json({**whole, "model": {**whole["model"], "vocab": {"a": 0, "b": 1 << 31}}}),
    )
    yield "merges-of-nothing", as_json({**whole, "model": {**whole["model"], "merges": ["a"]}})
    yield "an-unknown-decoder", as_json({**whole, "decoder": {"type": "Riddle"}})


def sentencepiece() -> Files:
    """ModelProto by hand: pieces (field 1) of text, score and type, a trainer_spec (field 2)."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [(c, 1) for c in "▁helowrd"] + [("▁h", 1), ("el", 1)]
    good = b"".join(_piece(text, -float(i), kind) for i, (text, kind) in enumerate(pieces))
    bpe = _field(2, b"\x18\x02")  # model_type BPE
    yield "good", good + bpe
    yield "a-piece-cut-short", (good + bpe)[:-7]
    yield "a-length-beyond-the-end", good + b"\x0a\xff\xff\xff\xff\x0f"
    yield "a-varint-without-end", good + b"\x0a" + b"\xff" * 20
    yield "a-piece-twice", good + _piece("▁h", -9.0, 1) + bpe
    yield "an-unknown-wire-type", good + b"\x0f\x00"
    yield "nothing", b""


def _piece(text: str, score: float, kind: int) -> bytes:
    body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
    return _field(1, body)


def _field(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def tiktoken() -> Files:
    tokens = [*test_tiktoken.BYTES, b"ab", b"abc", b"bc", b"the"]
    yield "good", test_tiktoken.lines(tokens)
    for lie, (data, _) in test_tiktoken.LIES.items():
        yield lie, data


def merges() -> Files:
    yield "good", b"#version: 0.2\nh e\nl l\n"
    yield "a merge of one", b"h e\nll\n"
    yield "a merge of what is no token", b"h e\nx y\n"
    yield "not UTF-8", b"h e\n\xff\xfe l\n"


def adapter() -> Files:
    for title, (changes, _, _) in test_adapter_folder.VARIATIONS.items():
        yield title, as_json({**test_adapter_folder.PLAIN, **changes})


def program() -> Files:
    target = parse_target("vulkan")
    whole = build_bundle(LibraryParts(NOTHING, {}, {}), b"the kernels", target)
    yield "an-old-format", whole  # format 0, which none of ours has
    yield "cut-in-the-code", whole[:-3]
    yield "cut-in-the-manifest", whole[: len(whole) // 2]
    yield "bytes-after-the-end", whole + b"more"
    yield "another-length", whole.replace(b"{", b"{ ", 1)
    yield "text-that-is-not-UTF-8", whole.replace(b'"sterna":""', b'"sterna":\x80\x80', 1)


def web_index() -> Files:
    yield "good", as_json(test_web_index.document())
    for path, lie in (
        ("format", 99), ("files.0.size", -1), ("files.0.name", "../a"), ("files.0.sha256", "0"),
        ("weights.tensors.0.offset", 1 << 62), ("weights.tensors.0.file", "none"),
        ("programs", []), ("programs.0.file", "none"), ("weights.tensors.1.encoding", "rot13"),
    ):  # fmt: skip
        yield f"{path} is {str(lie)[:8]}", test_web_index.changed(path, lie)

    good = as_json(test_web_index.document())
    yield "text that is not UTF-8", good.replace(b'"llama"', b'"\xff\xfe"', 1)


def shards() -> Files:
    yield "good", as_json({"metadata": {}, "weight_map": {"a": "one.safetensors"}})
    for title, named in (
        ("a shard that is not there", {"a": "one.safetensors", "b": "two.safetensors"}),
        ("a tensor that is not there", {"a": "one.safetensors", "b": "one.safetensors"}),
        ("a path", {"a": "../one.safetensors"}),
        ("no name", {"a": 3}),
        ("no object", ["one.safetensors"]),
    ):
        yield title, as_json({"weight_map": named})
    yield "no map", as_json({"metadata": {}})


def packed() -> Files:
    """Of 32 x 8 weights in four bits."""
    good = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    yield "good", as_json({"quantization_config": good})
    for key, lie in (
        ("bits", 1 << 70), ("bits", True), ("bits", 3), ("group_size", 0), ("group_size", 1 << 70),
        ("group_size", 7), ("quant_method", ["gptq"]), ("quant_method", "hqq"),
        ("checkpoint_format", ["marlin"]),
    ):  # fmt: skip
        yield f"{key} is {str(lie)[:8]}", as_json({"quantization_config": {**good, key: lie}})
    yield "no object", as_json({"quantization_config": [1]})


def adapter_weights() -> Files:
    a, b = ("F32", [1, 2], bytes(8)), ("F32", [2, 1], bytes(8))
    name = "base_model.model.m.lora_"
    yield "good", safetensors_of({f"{name}A.weight": a, f"{name}B.weight": b})
    for title, tensors in (
        ("one alone", {f"{name}A.weight": a}),
        ("ranks that differ", {f"{name}A.weight": a, f"{name}B.weight": a}),
        ("rank 0", {f"{name}A.weight": ("F32", [0, 2], b""), f"{name}B.weight": b}),
        ("integers", {f"{name}A.weight": ("I32", [1, 2], bytes(8)), f"{name}B.weight": b}),
        ("an embedding", {f"{name}embedding_A": a, f"{name}embedding_B": b}),
        ("nothing", {}),
    ):
        yield title, safetensors_of(tensors)


def rwkv_vocab() -> Files:
    yield "good", test_greedy.VOCABULARY.encode()
    for lie, text in test_greedy.LIES.items():
        yield lie, text().encode()


def pooling() -> Files:
    def listed(kind: str, path: object) -> list[object]:
        return [{"type": f"sentence_transformers.models.{kind}", "path": path}]

    yield "good", as_json(listed("Transformer", "") + listed("Pooling", "p"))
    for path in ("../p", "", "..", 3, "p/p", "none"):
        yield f"the folder {path}", as_json(listed("Pooling", path))
    yield "a dense layer", as_json(listed("Pooling", "p") + listed("Dense", "d"))
    yield "no pooling", as_json(listed("Transformer", ""))
    yield "no object", as_json([3])
    yield "no list", as_json({})


def ollama() -> Files:
    kind = "application/vnd.ollama.image."
    model = {"mediaType": f"{kind}model", "digest": f"sha256:{DIGEST}"}
    yield "good", as_json({"layers": [model, {"mediaType": f"{kind}license", "digest": "x"}]})
    for title, layers in (
        ("no model", []), ("two models", [model, model]), ("no layer", [3]), ("no list", {}),
        ("a path", [{**model, "digest": "sha256:../../x"}]),
        ("a blob that is gone", [{**model, "digest": f"sha256:{'0' * 64}"}]),
        ("an adapter", [model, {"mediaType": f"{kind}adapter"}]),
        ("a kind that is a number", [{**model, "mediaType": 3}]),
    ):  # fmt: skip
        yield title, as_json({"layers": layers})


def sterna_json() -> Files:
    good = {"format": 1, "model_type": "llama", "quantization": "q0f32", "config": {}}
    good |= {"overrides": {}, "fingerprint": "0"}
    yield "good", as_json(good)
    for key, lie in (
        ("format", 2), ("model_type", 3), ("quantization", None), ("config", []),
        ("overrides", "a"), ("fingerprint", 0), ("recipe", []),
    ):  # fmt: skip
        yield f"{key} is {lie}", as_json({**good, key: lie})


def chat_config() -> Files:
    good = {"model_type": "llama", "quantization": "q0f32", "model_config": {"vocab_size": 5}}
    yield "good", as_json(good)
    for key, lie in (("model_type", 3), ("quantization", []), ("model_config", 3)):
        yield f"{key} is {lie}", as_json({**good, key: lie})
    yield "text that is cut", as_json(good)[:-9]


def image() -> Files:
    from PIL import Image

    kept = io.BytesIO()
    Image.new("RGB", (9, 7), (250, 120, 3)).save(kept, "PNG")
    png = kept.getvalue()
    yield "good", png
    yield "cut", png[:40]
    yield "nothing", b""
    yield "a bitmap", b"BM" + bytes(60)
    yield "a vector", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for title, size in (
        ("a bomb", (1 << 30, 1 << 30)), ("no width", (0, 7)), ("a line", (1 << 20, 1)),
    ):  # fmt: skip
        head = b"IHDR" + struct.pack(">II", *size) + png[24:29]
        yield title, png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def image_options() -> Files:
    good = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "resample": 3}
    yield "good", as_json(good)
    yield from _options(good, (("crop_size", 9), ("size", 1 << 70), ("size", {"height": 8})))


def grid_options() -> Files:
    good = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64}
    yield "good", as_json({**good, "max_pixels": 4096})
    lies = (("patch_size", 5), ("merge_size", []), ("min_pixels", 1 << 70), ("max_pixels", "a"))
    yield from _options(good, lies)


def _options(good: dict[str, Any], lies: tuple[tuple[str, Any], ...]) -> Files:
    more = (("do_resize", False), ("do_pad", True), ("resample", 0), ("rescale_factor", -1))
    more += (("image_mean", [0.5]), ("image_std", [0, 0, 0]), ("do_normalize", "yes"))
    for key, lie in (*lies, *more):
        yield f"{key} is {str(lie)[:8]}", as_json({**good, key: lie})


def main() -> None:
    makers: dict[str, Any] = {
        m.__name__: m
        for m in (gguf, safetensors, mlc_index, config, tokenizer_json, sentencepiece, tiktoken,
                  merges, adapter, program, web_index, shards, packed, adapter_weights,
                  rwkv_vocab, pooling, ollama, sterna_json, chat_config, image, image_options,
                  grid_options)
    }  # fmt: skip
    for reader, maker in makers.items():
        folder = CORPUS / reader
        folder.mkdir(parents=True, exist_ok=True)
        for title, data in maker():
            if len(data) <= MOST_BYTES:
                (folder / title.replace(" ", "-").replace("/", "-").replace("*", "")).write_bytes(
                    data
                )


if __name__ == "__main__":
    main()
