"""SentencePiece BPE from a tokenizer.model, for folders that have nothing else.

In: a folder with tokenizer.model, a protocol-buffer file (google/sentencepiece,
src/sentencepiece_model.proto); out: a backend tokenizer. The file holds scores, not merges; merges
follow from them as in the Llama converter of Hugging Face transformers. Unigram models and models
with their own character normalization are refused: they need other arithmetic. The reader trusts
no length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.errors import TokenizerError
from sterna.text.json_file import check_size, read_optional
from sterna.text.vocab_merges import add_configured_tokens, set_start

if TYPE_CHECKING:
    import tokenizers

MAX_MODEL_BYTES = 64 << 20
MAX_PIECE = 512  # characters; merges are found by cutting each piece everywhere
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE_MODEL = 2
FIXED = {1: 8, 5: 4}  # wire type -> bytes

Field = tuple[int, int | bytes]


@dataclass(frozen=True, slots=True)
class Model:
    """`pieces`: (text, score, kind) by id; the flags of the two specs that matter."""

    pieces: tuple[tuple[str, float, int], ...]
    kind: int
    byte_fallback: bool
    dummy_prefix: bool
    charsmap: bool


def build_sentencepiece(folder: Path) -> tokenizers.Tokenizer:
    """Build the backend; TokenizerError for damaged files and kinds Sterna does not support."""
    path = folder / "tokenizer.model"
    check_size(path, MAX_MODEL_BYTES)
    config = read_optional(folder / "tokenizer_config.json")
    try:
        model = parse(path.read_bytes())
    except (ValueError, struct.error, IndexError, TypeError) as error:
        raise TokenizerError(
            f"{path} is no SentencePiece model ({error}): put the model's tokenizer.json beside it"
        ) from error
    if model.kind != BPE_MODEL or model.charsmap or not model.pieces:
        raise TokenizerError(
            f"{path} is a SentencePiece model of a kind Sterna does not read (it reads BPE without "
            "character normalization): put the model's tokenizer.json beside it, for example with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return _backend(model, config, folder)


def _backend(model: Model, config: dict[str, Any], folder: Path) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, decoders, normalizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise TokenizerError(f"{folder}/tokenizer.model lists a piece twice: it is damaged")
    unknown = next((text for text, _, kind in model.pieces if kind == UNKNOWN), None)
    backend = Backend(
        BPE(vocab, merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    space = normalizers.Replace(" ", "▁")
    backend.normalizer = space
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        _prepend_space(backend, legacy=config.get("legacy") is not False)
        chain.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(chain)
    control = [text for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    user = [text for text, _, kind in model.pieces if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in user])
    _add_listed(backend, config, folder)
    start = next((text for text, _, kind in model.pieces if kind == CONTROL), None)
    if start is not None and config.get("add_bos_token", True):
        set_start(backend, start)
    return backend


def _prepend_space(backend: tokenizers.Tokenizer, *, legacy: bool) -> None:
    """Put the space before the first word; `legacy` also puts it after each control token."""
    from tokenizers import normalizers, pre_tokenizers

    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        return
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)


def _add_listed(backend: tokenizers.Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Add the tokens of the configuration, else those of added_tokens.json."""
    described = config.get("added_tokens_decoder")
    if not described:
        listed = read_optional(folder / "added_tokens.json")
        described = {str(i): {"content": text, "special": True} for text, i in listed.items()}
    add_configured_tokens(backend, {"added_tokens_decoder": described}, folder)


def merges(model: Model) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece, best score of the whole first."""
    ids = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    found = []
    for whole, score, _ in model.pieces:
        cuts = ((whole[:i], whole[i:]) for i in range(1, len(whole)))
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, left, right) for left, right in pairs]
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def parse(data: bytes) -> Model:
    """Read the parts of a ModelProto that tokenizing needs; ValueError for a damaged one."""
    pieces: list[tuple[str, float, int]] = []
    kind, byte_fallback, dummy_prefix, charsmap = 1, False, True, False
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
            kind = int(trainer.get(3, 1))
            byte_fallback = bool(trainer.get(35, 0))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
            dummy_prefix = bool(normalizer.get(3, 1))
            charsmap = bool(normalizer.get(2, b""))
    return Model(tuple(pieces), kind, byte_fallback, dummy_prefix, charsmap)


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text = _message(fields.get(1, b"")).decode()
    if not 0 < len(text) <= MAX_PIECE:
        raise ValueError(f"a piece of {len(text)} characters")
    (score,) = struct.unpack("<f", _message(fields.get(2, bytes(4))))
    return text, score, int(fields.get(3, NORMAL))


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes must stand")
    return value


def _fields(data: bytes) -> Iterator[Field]:
    """(field number, value) of one protocol-buffer message; bytes for all but varints."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size, at = (FIXED[wire], at) if wire in FIXED else _length(data, at, wire)
        if at + size > len(data):
            raise ValueError("a length beyond the end of the file")
        yield key >> 3, data[at : at + size]
        at += size


def _length(data: bytes, at: int, wire: int) -> tuple[int, int]:
    if wire != 2:
        raise ValueError(f"unknown wire type {wire}")
    return _varint(data, at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
