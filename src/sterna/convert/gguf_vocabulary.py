"""The vocabulary in a GGUF file's metadata as `tokenizer.json` and `tokenizer_config.json`.

In: metadata. Out: both as JSON values, in the form of Hugging Face's tokenizers. Two kinds of
vocabulary are known: SentencePiece BPE ("llama": pieces with scores, from which merges follow) and
byte-level BPE ("gpt2": tokens and merges, words cut as `tokenizer.ggml.pre` names). Any other kind
is refused by name, for a wrong cut gives wrong ids silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sterna.base.errors import TokenizerError
from sterna.text.sentencepiece import BPE_MODEL, MAX_PIECE, Model, merges

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_SPACE = "▁"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How words are cut, by the name that llama.cpp's converter gives: patterns, one after another.
_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "glm4"), (_LLAMA3,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_O200K,)),
    "tekken": (_TEKKEN,),
}
_WHOLE_WORDS_FIRST = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))
_STARTS_BY_DEFAULT = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))

# Tokens that end an answer in the formats of their models, whether or not a file says so.
_ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "<|return|>", "<|call|>",
)  # fmt: skip


def tokenizer_json(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`tokenizer.json`; `source` names the file in errors. Raises TokenizerError."""
    vocabulary = _Vocabulary(metadata, source)
    kind = vocabulary.kind
    if kind == "llama":
        return vocabulary.sentencepiece()
    if kind == "gpt2":
        return vocabulary.byte_level()
    raise TokenizerError(
        f"{source} has a vocabulary of the kind {str(kind)[:80]!r}; 'llama' (SentencePiece BPE) "
        "and 'gpt2' (byte-level BPE) are read"
    )


def tokenizer_config(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`tokenizer_config.json`: the special tokens' texts and the chat template."""
    vocabulary = _Vocabulary(metadata, source)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config: dict[str, Any] = {
        title: vocabulary.tokens[i]
        for name, title in names.items()
        if (i := vocabulary.special(name)) is not None
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return {**config, "add_bos_token": vocabulary.starts, "add_eos_token": vocabulary.ends}


def end_ids(metadata: Mapping[str, Any], source: str) -> list[int]:
    """The ids that end an answer: the end token first, then what else ends a turn."""
    vocabulary = _Vocabulary(metadata, source)
    stated = [vocabulary.special(name) for name in ("eos", "eot", "eom")]
    known = [i for i, token in enumerate(vocabulary.tokens) if token in _ENDS
             and vocabulary.kinds[i] in (_CONTROL, _USER)]  # fmt: skip
    return list(dict.fromkeys([*(i for i in stated if i is not None), *known]))


class _Vocabulary:
    """The checked `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self.metadata = metadata
        self.source = source
        self.kind = self._get("model")
        self.tokens = self._strings("tokens")
        if len(set(self.tokens)) != len(self.tokens):
            raise TokenizerError(f"{source}: its vocabulary lists a token twice, so it is damaged")
        kinds = self._numbers("token_type")
        self.kinds = [_NORMAL] * len(self.tokens) if kinds is None else [int(k) for k in kinds]
        spm = self.kind == "llama"
        self.starts = self._flag("add_bos_token", spm or self._get("pre") in _STARTS_BY_DEFAULT)
        self.ends = self._flag("add_eos_token", False)

    def _get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def _strings(self, key: str) -> list[str]:
        found = self._get(key)
        if not isinstance(found, list) or not found:
            raise TokenizerError(f"{self.source} has no tokenizer.ggml.{key}; get a whole model")
        return found

    def _numbers(self, key: str) -> np.ndarray[Any, Any] | None:
        found = self._get(key)
        if found is None:
            return None
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise TokenizerError(
                f"{self.source}: tokenizer.ggml.{key} must hold a number for each of the "
                f"{len(self.tokens)} tokens"
            )
        return found

    def _flag(self, key: str, default: bool) -> bool:
        found = self._get(key)
        return found if isinstance(found, bool) else default

    def special(self, name: str) -> int | None:
        """The id of a special token, if the file has one."""
        found = self._get(f"{name}_token_id")
        if found is None or found in (-1, 0xFFFFFFFF):
            return None
        if type(found) is not int or not 0 <= found < len(self.tokens):
            raise TokenizerError(
                f"{self.source}: tokenizer.ggml.{name}_token_id {found!r:.40} is none of the "
                f"{len(self.tokens)} tokens"
            )
        return found

    def sentencepiece(self) -> dict[str, Any]:
        longest = max(map(len, self.tokens))
        if longest > MAX_PIECE:
            raise TokenizerError(f"{self.source}: a piece of {longest} characters is no token")
        scores = self._numbers("scores")
        if scores is None:
            raise TokenizerError(f"{self.source} has no tokenizer.ggml.scores, so no merges follow")
        floats = np.nan_to_num(scores.astype(np.float64)).tolist()
        pieces = tuple(zip(self.tokens, floats, self.kinds, strict=True))
        found = merges(Model(pieces, BPE_MODEL, True, True, False))
        unknown = self.special("unknown")
        if unknown is None:
            unknown = self.kinds.index(_UNKNOWN) if _UNKNOWN in self.kinds else None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        decode = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
        normalizer: dict[str, Any] = replace
        decoders = [decode, {"type": "ByteFallback"}, {"type": "Fuse"}]
        if self._flag("add_space_prefix", True):
            prepend = {"type": "Prepend", "prepend": _SPACE}
            normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        model = {
            "unk_token": None if unknown is None else self.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": self._ids(),
            "merges": [list(pair) for pair in found],
        }
        return self._whole(model, normalizer, None, {"type": "Sequence", "decoders": decoders})

    def byte_level(self) -> dict[str, Any]:
        pre = self._get("pre")
        if pre not in _WORDS:
            raise TokenizerError(
                f"{self.source} cuts words as {str(pre)[:80]!r} "
                f"(tokenizer.ggml.pre), which Sterna does not know; known: {', '.join(_WORDS)}"
            )
        pairs = [merge.split(" ") for merge in self._strings("merges")]
        ids = self._ids()
        for pair in pairs:
            if len(pair) != 2 or any(part not in ids for part in (*pair, "".join(pair))):
                raise TokenizerError(f"{self.source}: the merge {' '.join(pair)[:80]!r} is damaged")
        cuts = [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
            for words in _WORDS[pre]
        ]
        level = {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
        }  # fmt: skip
        model = {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS_FIRST,
            "vocab": ids,
            "merges": pairs,
        }
        cut = {"type": "Sequence", "pretokenizers": [*cuts, level]}
        return self._whole(model, None, cut, level)

    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def _whole(
        self,
        model: dict[str, Any],
        normalizer: dict[str, Any] | None,
        pre_tokenizer: dict[str, Any] | None,
        decoder: dict[str, Any],
    ) -> dict[str, Any]:
        common = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(i, self.tokens[i], special=kind != _USER)
                for i, kind in enumerate(self.kinds)
                if kind in (_UNKNOWN, _CONTROL, _USER)
            ],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self._template(),
            "decoder": decoder,
            "model": {"type": "BPE", **common, **model},
        }

    def _template(self) -> dict[str, Any] | None:
        """Start and end tokens around every text, where the file asks for them."""
        start = self.special("bos") if self.starts else None
        end = self.special("eos") if self.ends else None
        if start is None and end is None:
            return None
        before, after = self._markers(start), self._markers(end)
        marked = [i for i in (start, end) if i is not None]
        return {
            "type": "TemplateProcessing",
            "single": [*before, _text("A", 0), *after],
            "pair": [*before, _text("A", 0), *after, *before, _text("B", 1), *after],
            "special_tokens": {
                self.tokens[i]: {"id": self.tokens[i], "ids": [i], "tokens": [self.tokens[i]]}
                for i in marked
            },
        }

    def _markers(self, token: int | None) -> Sequence[dict[str, Any]]:
        if token is None:
            return ()
        return ({"SpecialToken": {"id": self.tokens[token], "type_id": 0}},)


def _text(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _added(i: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **flags, "special": special}
