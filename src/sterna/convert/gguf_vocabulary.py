"""The vocabulary in a GGUF file's metadata as `tokenizer.json` and `tokenizer_config.json`.

In: metadata. Out: both as JSON values, in the form of Hugging Face's tokenizers; RWKV's vocabulary
as the text of its own file. Five kinds are known: SentencePiece BPE ("llama": pieces with scores,
from which merges follow) and Unigram ("t5"), byte-level BPE ("gpt2": tokens and merges, words cut
as `tokenizer.ggml.pre` names), WordPiece ("bert") and RWKV's World ("rwkv"). Any other kind is
refused by name, for a wrong cut gives wrong ids silently.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sterna.base.errors import TokenizerError
from sterna.convert.gguf_words import WORDS
from sterna.text.greedy import END
from sterna.text.sentencepiece import BPE_MODEL, MAX_PIECE, Model, merges

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
_MOST_CHARSMAP = 4 << 20  # bytes; XLM-R's has 300 KB
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})|\\(.)", re.DOTALL)
_ESCAPED = {"n": b"\n", "t": b"\t", "r": b"\r", "\\": b"\\", "'": b"'", '"': b'"'}

_WHOLE_WORDS_FIRST = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))
_STARTS_BY_DEFAULT = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))

_BPE = {
    "type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None
}  # fmt: skip

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
    if kind == "bert":
        return vocabulary.word_pieces()
    if kind == "t5":
        return vocabulary.unigram()
    raise TokenizerError(
        f"{source} has a vocabulary of the kind {str(kind)[:80]!r}; 'llama' (SentencePiece BPE), "
        "'gpt2' (byte-level BPE), 'bert' (WordPiece), 't5' (Unigram) and 'rwkv' are read"
    )


def is_greedy(metadata: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is RWKV's, which no tokenizer.json can hold."""
    return bool(metadata.get("tokenizer.ggml.model") == "rwkv")


def greedy_vocabulary(metadata: Mapping[str, Any], source: str) -> str:
    """The text of rwkv_vocab_v20230424.txt; TokenizerError for a token whose bytes are unclear."""
    vocabulary = _Vocabulary(metadata, source)
    lines = []
    for i, token in enumerate(vocabulary.tokens):
        if vocabulary.kinds[i] != _NORMAL:
            continue
        data = _unescaped(token)
        if data is None:
            raise TokenizerError(f"{source}: the token {token[:80]!r} of its vocabulary is damaged")
        lines.append(f"{i} {data!r} {len(data)}\n")
    return "".join(lines)


def _unescaped(token: str) -> bytes | None:
    """The bytes of a token that is spelled as Python spells them; None where it is not."""
    found, at = b"", 0
    for match in _ESCAPE.finditer(token):
        own = bytes.fromhex(match[1]) if match[1] else _ESCAPED.get(match[2])
        if own is None:
            return None
        found += token[at : match.start()].encode() + own
        at = match.end()
    rest = token[at:]
    return None if "\\" in rest else found + rest.encode()


def tokenizer_config(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`tokenizer_config.json`: the special tokens' texts and the chat template."""
    vocabulary = _Vocabulary(metadata, source)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config: dict[str, Any] = {
        title: vocabulary.tokens[i]
        for name, title in names.items()
        if (i := vocabulary.special(name)) is not None
    }
    if is_greedy(metadata):  # whose token 0 has no text there
        config = {"bos_token": END, "eos_token": END}
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
        self.tokens = list(self._strings("tokens"))
        if len(set(self.tokens)) != len(self.tokens):
            raise TokenizerError(f"{source}: its vocabulary lists a token twice, so it is damaged")
        kinds = self._numbers("token_type")
        self.kinds = [_NORMAL] * len(self.tokens) if kinds is None else [int(k) for k in kinds]
        spm = self.kind == "llama"
        self.starts = self._flag("add_bos_token", spm or self._get("pre") in _STARTS_BY_DEFAULT)
        self.ends = self._flag("add_eos_token", self.kind == "t5")

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

    def word_pieces(self) -> dict[str, Any]:
        """BERT's. The file marks beginnings of words with a space, where WordPiece marks the rest.

        A vocabulary without a capital letter is of texts in small letters without accents.
        """
        for i, token in enumerate(self.tokens):
            if self.kinds[i] == _NORMAL:
                begins = token.startswith(_SPACE)
                self.tokens[i] = token[1:] if begins else f"##{token}"
        normal = (t for t, kind in zip(self.tokens, self.kinds, strict=True) if kind == _NORMAL)
        small = all(token == token.lower() for token in normal)
        unknown = self._marker("unknown", "[UNK]")
        normalizer = {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": small,
        }  # fmt: skip
        model = {
            "type": "WordPiece",
            "unk_token": self.tokens[unknown],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": self._ids(),
        }
        ends = (self._marker("cls", "[CLS]"), self._marker("seperator", "[SEP]"))
        decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        return self._whole(model, normalizer, {"type": "BertPreTokenizer"}, decoder, ends)

    def unigram(self) -> dict[str, Any]:
        """SentencePiece Unigram: XLM-R's and T5's; the best of all cuts by the pieces' scores."""
        scores = self._numbers("scores")
        if scores is None:
            raise TokenizerError(f"{self.source} has no tokenizer.ggml.scores, so no cut is best")
        unknown = self.special("unknown")
        if unknown is None and _UNKNOWN in self.kinds:
            unknown = self.kinds.index(_UNKNOWN)
        if unknown is None:
            raise TokenizerError(f"{self.source} names no token for unknown text")
        floats = np.nan_to_num(scores.astype(np.float64)).tolist()
        model = {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [list(pair) for pair in zip(self.tokens, floats, strict=True)],
            "byte_fallback": _BYTE in self.kinds,
        }
        prefix = "always" if self._flag("add_space_prefix", True) else "never"
        space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": prefix,
                 "split": True}  # fmt: skip
        cut = space
        if self._flag("remove_extra_whitespaces", True):
            cut = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}
        return self._whole(model, self._charsmap(), cut, space)

    def _charsmap(self) -> dict[str, Any] | None:
        """How SentencePiece spells characters before it cuts."""
        found = self._get("precompiled_charsmap")
        if found is None or len(found) == 0:
            return None
        if not isinstance(found, np.ndarray) or found.dtype.itemsize != 1:
            raise TokenizerError(f"{self.source}: tokenizer.ggml.precompiled_charsmap is no bytes")
        if found.nbytes > _MOST_CHARSMAP:
            raise TokenizerError(
                f"{self.source}: tokenizer.ggml.precompiled_charsmap has {found.nbytes} bytes; at "
                f"most {_MOST_CHARSMAP} are read"
            )
        text = base64.b64encode(found.tobytes()).decode()
        return {"type": "Precompiled", "precompiled_charsmap": text}

    def _marker(self, name: str, usual: str) -> int:
        """A special token's id, by its key or its usual text."""
        found = self.special(name)
        if found is None and usual in self.tokens:
            found = self.tokens.index(usual)
        if found is None:
            raise TokenizerError(
                f"{self.source} has no tokenizer.ggml.{name}_token_id, nor {usual}"
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
            **_BPE,
            "unk_token": None if unknown is None else self.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": self._ids(),
            "merges": [list(pair) for pair in found],
        }
        return self._whole(model, normalizer, None, {"type": "Sequence", "decoders": decoders})

    def byte_level(self) -> dict[str, Any]:
        pre = self._get("pre")
        if pre not in WORDS:
            raise TokenizerError(
                f"{self.source} cuts words as {str(pre)[:80]!r} "
                f"(tokenizer.ggml.pre), which Sterna does not know; known: {', '.join(WORDS)}"
            )
        pairs = [merge.split(" ") for merge in self._strings("merges")]
        ids = self._ids()
        for pair in pairs:
            if len(pair) != 2 or any(part not in ids for part in (*pair, "".join(pair))):
                raise TokenizerError(f"{self.source}: the merge {' '.join(pair)[:80]!r} is damaged")
        cuts = [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
            for words in WORDS[pre]
        ]
        level = {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
        }  # fmt: skip
        model = {
            **_BPE,
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
        ends: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
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
            "post_processor": self._template(*(ends or self._usual_ends())),
            "decoder": decoder,
            "model": model,
        }

    def _usual_ends(self) -> tuple[int | None, int | None]:
        """Start and end tokens, where the file asks for them."""
        start = self.special("bos") if self.starts else None
        return start, self.special("eos") if self.ends else None

    def _template(self, start: int | None, end: int | None) -> dict[str, Any] | None:
        """Both around every text."""
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
