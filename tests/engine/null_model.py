"""A model for engine tests: the null device, a byte-level tokenizer, a template of one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sterna.base.artifact import FORMAT, KVCache, Manifest, Model
from sterna.engine.engine import AsyncEngine, Engine
from sterna.engine.limits import Limits
from sterna.engine.options import EngineOptions, SamplingOptions
from sterna.runtime.null import NullExecutable
from sterna.text.decoding import ALPHABET

EOS = 256
VOCAB = 257
_CHARACTERS = {byte: character for character, byte in ALPHABET.items()}


def manifest(**changes: Any) -> Manifest:
    model: dict[str, Any] = {
        "model_type": "null",
        "quantization": "q0f32",
        "fingerprint": "f" * 8,
        "vocab_size": VOCAB,
        "context_window_size": 256,
        "prefill_chunk_size": 256,
        "max_batch_size": 8,
    }
    kv: dict[str, Any] = {
        "layers": 1,
        "kv_heads": 1,
        "head_dim": 1,
        "page_size": 4,
        "dtype": "f32",
        "page_bytes": 32,
    }
    for name, value in changes.items():
        (kv if name in kv else model)[name] = value
    return Manifest(
        format=FORMAT,
        sterna="0",
        target="cpu",
        features=(),
        model=Model(**model),
        kv_cache=KVCache(**kv),
        params=(),
        entries=(),
        kernels=(),
    )


class ByteTokenizer:
    """Ids are bytes; 256 ends an answer."""

    eos_ids = (EOS,)
    bos_id = None
    vocab_size = VOCAB
    decoder_steps = ({"type": "ByteLevel"},)
    special_tokens = {"</s>": EOS}  # noqa: RUF012

    def encode(
        self, text: str, *, add_special_tokens: bool = True, allow_special: bool = False
    ) -> list[int]:
        return list(text.encode())

    def encode_marked(self, text: str, mark: str) -> list[int]:
        return list(text.replace(mark, "").encode())

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < EOS).decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str | None:
        return "</s>" if token_id == EOS else _CHARACTERS[token_id]

    def id_to_piece(self, token_id: int) -> bytes:
        return b"</s>" if token_id == EOS else bytes([token_id])

    def is_special(self, token: str) -> bool:
        return token == "</s>"


class LineTemplate:
    variables = frozenset({"messages"})

    def render(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> str:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant:"


def limits(**changes: Any) -> Limits:
    plain = Limits(max_sequences=8, chunk=32, num_pages=512, page_size=4, window=256)
    return dataclasses.replace(plain, **changes)


def engine(
    executable: Any = None, face: type[Engine] | type[AsyncEngine] = Engine, **changes: Any
) -> Any:
    """An engine over the null device; `changes` go to manifest, engine options, or pages."""
    pages, draft = changes.pop("num_pages", 512), changes.pop("draft", None)
    template = changes.pop("template", None) or LineTemplate()
    names = {field.name for field in dataclasses.fields(EngineOptions)}
    chosen = {"mode": "server"} | {k: changes.pop(k) for k in list(changes) if k in names}
    return face.from_parts(
        executable or NullExecutable(manifest(**changes), pages),
        ByteTokenizer(),
        template,
        "null",
        SamplingOptions(),
        options=EngineOptions(**chosen),
        draft=draft,
    )
