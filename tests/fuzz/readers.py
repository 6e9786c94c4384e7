"""Every reader of files from elsewhere, as one function of a folder, for the corpus and the fuzzer.

A reader takes the file of its name in a folder and whatever usually lies beside it, and returns, or
raises an Error of one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sterna import models
from sterna.checkpoint.config import read_config
from sterna.checkpoint.gguf import open_gguf
from sterna.checkpoint.lora import open_adapter
from sterna.checkpoint.mlc_index import read_mlc_index
from sterna.checkpoint.safetensors import open_safetensors
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
            (folder / name).write_bytes(content)
        (folder / self.file).write_bytes(data)
        return self.read(folder)


def _tokenizer(folder: Path) -> object:
    tokenizer = Tokenizer.load(folder)
    return tokenizer.decode(tokenizer.encode(TEXT))


def _config(folder: Path) -> object:
    return models.build(read_config(folder), SCHEMES["q0f32"], 64)


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
    "web_index": Reader("sterna-web.json", read_index),
}
