"""Every reader of files from elsewhere, as one function of a folder, for the corpus and the fuzzer.

A reader takes the file of its name in a folder and whatever usually lies beside it, and returns, or
raises an Error of one sentence.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from sterna import models
from sterna.base.artifact import Vision
from sterna.checkpoint.config import read_config
from sterna.checkpoint.folder import open_checkpoint
from sterna.checkpoint.gguf import open_gguf
from sterna.checkpoint.local_stores import OLLAMA, find
from sterna.checkpoint.lora import open_adapter
from sterna.checkpoint.mlc_index import read_mlc_index
from sterna.checkpoint.model_folder import open_model
from sterna.checkpoint.pooling import read_pooling
from sterna.checkpoint.safetensors import open_safetensors
from sterna.convert.open_tensors import open_tensors
from sterna.engine.grid_reader import GridReader
from sterna.engine.image_reader import ImageReader, decode_image
from sterna.quantize.scheme import SCHEMES
from sterna.runtime.bundle import read_bundle
from sterna.runtime.web_folder import read_index
from sterna.text.decoding import ALPHABET
from sterna.text.tokenizer import Tokenizer

CORPUS = Path(__file__).parent / "corpus"
TEXT = "hello world é <|bos|>"


@dataclass(frozen=True)
class Reader:
    """The file's name, what reads it, and the files that it wants beside it."""

    file: str
    read: Callable[[Path], object]
    beside: dict[str, bytes] = field(default_factory=dict)

    def run(self, folder: Path, data: bytes) -> object:
        """Read `data` as the file; `folder` is empty or this reader's own."""
        for name, content in self.beside.items():
            self._write(folder / name, content)
        self._write(folder / self.file, data)
        return self.read(folder)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _tokenizer(folder: Path) -> object:
    tokenizer = Tokenizer.load(folder)
    return tokenizer.decode(tokenizer.encode(TEXT))


def _config(folder: Path) -> object:
    return models.build(read_config(folder), SCHEMES["q0f32"], 64)


def _packed(folder: Path) -> object:
    tensors = open_tensors(folder, read_config(folder))
    return [tensor.values(0, tensor.shape[0]) for tensor in tensors.values()]


def _ollama(folder: Path) -> object:
    with mock.patch.dict(os.environ, {"OLLAMA_MODELS": str(folder)}):
        return find(f"{OLLAMA}m")


def _adapter_weights(folder: Path) -> object:
    pairs = open_adapter(folder).pairs.values()
    return [(pair.a.read(), pair.b.read(), pair.scale) for pair in pairs]


def _image(folder: Path) -> object:
    return decode_image((folder / "m.png").read_bytes(), "the image").size


def safetensors_of(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file of tensors given as dtype, shape and bytes."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


_GPTQ = safetensors_of(
    {
        "m.qweight": ("I32", [4, 8], bytes(128)),
        "m.qzeros": ("I32", [1, 1], b"\x77" * 4),
        "m.scales": ("F16", [1, 8], b"\x00\x3c" * 8),
        "m.g_idx": ("I32", [32], bytes(128)),
    }
)
ONE = safetensors_of({"a": ("F32", [1], bytes(4))})
_ADAPTER = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}).encode()
_CHAT_CONFIG = json.dumps({"model_type": "llama", "quantization": "q0f32"}).encode()
DIGEST = "ab" * 32
_LLAMA = json.dumps({"model_type": "llama"}).encode()
_CONTROL = json.dumps(
    {"added_tokens_decoder": {"260": {"content": "<|end|>", "special": True}}}
).encode()
_VOCAB = json.dumps({t: i for i, t in enumerate([*ALPHABET, "he", "ll"])}).encode()
_BYTES = json.dumps({"tokenizer_class": "GPT2Tokenizer"}).encode()

READERS = {
    "gguf": Reader("m.gguf", lambda folder: open_gguf(folder / "m.gguf")),
    "safetensors": Reader(
        "m.safetensors", lambda folder: open_safetensors(folder / "m.safetensors")
    ),
    "mlc_index": Reader(
        "tensor-cache.json", lambda folder: read_mlc_index(folder / "tensor-cache.json")
    ),
    "config": Reader("config.json", _config),
    "tokenizer_json": Reader("tokenizer.json", _tokenizer),
    "sentencepiece": Reader("tokenizer.model", _tokenizer, {"config.json": _LLAMA}),
    "tiktoken": Reader(
        "tokenizer.model", _tokenizer, {"config.json": _LLAMA, "tokenizer_config.json": _CONTROL}
    ),
    "merges": Reader(
        "merges.txt", _tokenizer, {"vocab.json": _VOCAB, "tokenizer_config.json": _BYTES}
    ),
    "adapter": Reader("adapter_config.json", open_adapter),
    "program": Reader("m.sterna", lambda folder: read_bundle(folder / "m.sterna")),
    "shards": Reader(
        "model.safetensors.index.json",
        lambda folder: open_checkpoint(folder).tensors,
        {"config.json": _LLAMA, "one.safetensors": ONE},
    ),
    "packed": Reader("config.json", _packed, {"model.safetensors": _GPTQ}),
    "adapter_weights": Reader(
        "adapter_model.safetensors", _adapter_weights, {"adapter_config.json": _ADAPTER}
    ),
    "rwkv_vocab": Reader("rwkv_vocab_v20230424.txt", _tokenizer),
    "pooling": Reader(
        "modules.json", read_pooling, {"p/config.json": b'{"pooling_mode_mean_tokens": true}'}
    ),
    "ollama": Reader(
        "manifests/registry.ollama.ai/library/m/latest",
        _ollama,
        {f"blobs/sha256-{DIGEST}": b"GGUF"},
    ),
    "sterna_json": Reader(
        "sterna.json",
        lambda folder: open_model(folder, weights=False),
        {"mlc-chat-config.json": _CHAT_CONFIG},
    ),
    "chat_config": Reader("mlc-chat-config.json", lambda folder: open_model(folder, weights=False)),
    "image": Reader("m.png", _image),
    "image_options": Reader(
        "preprocessor_config.json",
        lambda folder: ImageReader.load(folder, Vision(image_token=1, image_size=8, patch_size=4)),
    ),
    "grid_options": Reader(
        "preprocessor_config.json",
        lambda folder: GridReader.load(folder, Vision(1, 0, 4, merge=2, most=64, frames=2, axes=3)),
    ),
    "web_index": Reader("sterna-web.json", read_index),
}
