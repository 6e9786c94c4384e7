"""Tiny tokenizers made in code, for tests that need no real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.text.decoding import ALPHABET
from sterna.text.tokenizer import Tokenizer

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ã ©"]
SPECIAL = ["<|bos|>", "<|eos|>", "<|turn of|>"]


def added(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"id": token_id, "content": content, "special": True, **plain, **flags}


def byte_level_json() -> dict[str, Any]:
    """A byte-level BPE: 256 bytes, nine merges, three control tokens, a start token put first."""
    tokens = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
    vocab = {token: i for i, token in enumerate(tokens)}
    start = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"id": SPECIAL[0], "ids": [start], "tokens": [SPECIAL[0]]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(text, start + i) for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {SPECIAL[0]: special},
        },
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": MERGES, "byte_fallback": False},
    }


def byte_fallback_json() -> dict[str, Any]:
    """A SentencePiece-like BPE with byte tokens, as Llama 2's, its text decoded in four steps."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", "a", "b", "é", "▁a", "▁a▁b", "日", "<0x41", "  ", "\N{REPLACEMENT CHARACTER}"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(text, i) for i, text in enumerate(pieces[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": ["▁ a"],
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def word_piece_json() -> dict[str, Any]:
    """A tokenizer as BERT's."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abc.?!,'", "##a", "##ing", "n't", "'m", "'s"]
    pieces += ["do not", "'ve", "'re", "##", "##.", "a .", " ' "]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(text, i) for i, text in enumerate(pieces[:4])],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
        },
    }


def decoders() -> dict[str, dict[str, Any]]:
    """tokenizer.json contents by the decoder they use; every decoder step occurs."""
    fallback = byte_fallback_json()
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    steps = fallback["decoder"]["decoders"]
    return {
        "byte level": byte_level_json(),
        "byte fallback": fallback,
        "metaspace": fallback | {"decoder": space},
        "metaspace kept": fallback | {"decoder": space | {"prepend_scheme": "never"}},
        "no strip": fallback | {"decoder": {"type": "Sequence", "decoders": steps[:3]}},
        "strip each": fallback
        | {
            "decoder": {
                "type": "Sequence",
                "decoders": [steps[0], steps[3], steps[1]],
            }
        },
        "strip three": fallback
        | {"decoder": {"type": "Sequence", "decoders": [*steps[:3], steps[3] | {"start": 3}]}},
        "none": fallback | {"decoder": None},
        "word piece": word_piece_json(),
        "word piece as it is": word_piece_json()
        | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}},
    }


def write(folder: Path, content: dict[str, Any], **configs: dict[str, Any]) -> Path:
    """Write tokenizer.json and, by keyword, NAME.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"tokenizer": content, **configs}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def load_byte_level(folder: Path) -> Tokenizer:
    """The byte-level tokenizer, loaded with its start and end tokens named."""
    config = {"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[1]}}
    return Tokenizer.load(write(folder, byte_level_json(), tokenizer_config=config))
