"""Text to token ids and back, exactly as the model's own tokenizer files say.

In: a model folder (tokenizer.json, vocab.json + merges.txt, ranks, tokenizer.model, or RWKV's
vocabulary); out: a `Tokenizer`. The `tokenizers` library does the work of all but the last; it is
imported when a folder is loaded, so that importing Sterna stays quick. Files are hostile until
checked, and every failure is a `TokenizerError`. A large vocabulary may be kept in a file, of which
later loads read what texts need (partial.py). Does not know chat templates (chat_template.py) nor
streaming (detokenizer.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.cache import key
from sterna.base.errors import RequestError, TokenizerError
from sterna.base.version import file_state, source_state
from sterna.text import decoding
from sterna.text.greedy import FILE, GreedyBackend, build_greedy
from sterna.text.json_file import check_size, read_optional
from sterna.text.marking import one_of
from sterna.text.partial import PartialBackend, keep
from sterna.text.sentencepiece import build_sentencepiece
from sterna.text.special_tokens import SpecialTokens, read_special_tokens
from sterna.text.tiktoken import build_tiktoken, find_ranks
from sterna.text.token_store import open_store
from sterna.text.vocab_merges import add_configured_tokens, build_byte_level

if TYPE_CHECKING:
    import tokenizers

    Backend = tokenizers.Tokenizer | GreedyBackend | PartialBackend

MAX_EXPANSION = 1024
MAX_ADDED = 16
SMALLEST_KEPT = 1 << 20  # bytes of a tokenizer.json; what is below is read in no time


class Tokenizer:
    """A loaded tokenizer. Safe to use from several threads.

    `vocab_size` is one more than the highest id. `bos_id` is None where the model has no start
    token. `eos_ids` ends generation: the tokenizer's own end token first, then those that the
    generation or model configuration lists. `special_tokens` are the control tokens, text to id,
    `special_ids` their ids.
    """

    def __init__(self, backend: Backend, special: SpecialTokens) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._lock = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {
            token.content: i for i, token in added.items() if token.special
        }
        self.special_ids = frozenset(self.special_tokens.values())
        self._aliases: dict[str, str] | None = None
        self._aliased: dict[int, int] = {}
        self.vocab_size: int = max([backend.get_vocab_size(False) - 1, *added]) + 1
        self.decoder_steps = decoding.flatten(_component(backend.decoder))
        decoding.check(self.decoder_steps)
        self.bos_id = self._find_bos(special)
        self.eos_ids = self._find_eos(special)
        first = self._added_ids()[:1]
        self._adds_bos = self.bos_id is not None and first == [self.bos_id]

    @classmethod
    def load(cls, folder: Path, keep_in: Path | None = None) -> Tokenizer:
        """Load the tokenizer of a model folder; TokenizerError when there is none that works.

        A large vocabulary is kept in the folder `keep_in` for later loads, which are quick and
        small. They suit one conversation; who encodes much loads all of it sooner or later.
        """
        folder = Path(folder)
        special = read_special_tokens(folder)
        with _damaged(f"files in {folder} are"):
            return cls(_build(folder, keep_in), special)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, allow_special: bool = False
    ) -> list[int]:
        """Turn text into ids.

        `allow_special=False`, for what users write: control tokens spelled out in the text are
        plain text. `allow_special=True`, for rendered chat templates: they become the tokens.
        `add_special_tokens` lets the tokenizer add its start token, never a second one where the
        text begins with it already. Raises RequestError for text that is not valid Unicode.
        """
        _check_unicode(text)
        with self._lock, _damaged("is"):
            self._backend.encode_special_tokens = not allow_special
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        doubled = add_special_tokens and self._adds_bos and ids[1:2] == [self.bos_id]
        return ids[1:] if doubled else ids

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Turn a rendered chat template into ids, without those that users spelled out.

        `text` is what a template made of messages that `Marker` marked: a special token with the
        mark in it is plain text, a whole one is the token. But for that the ids are those of
        `encode(text without marks, add_special_tokens=False, allow_special=True)`.

        The library cannot tell them apart, so whole special tokens are first spelled by aliases
        that nobody can guess, which are added tokens of their own, split like the real ones.
        """
        _check_unicode(text)
        with self._lock, _damaged("is"):
            aliases = self._aliases if self._aliases is not None else self._add_aliases()
            if aliases:
                special = f"(?:{one_of(tuple(aliases))})(?!{re.escape(mark)})"
                text = re.sub(special, lambda match: aliases[match[0]], text)
            self._backend.encode_special_tokens = True
            text = text.replace(mark, "")
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [self._aliased.get(i, i) for i in ids]

    def _add_aliases(self) -> dict[str, str]:
        from tokenizers import AddedToken

        added = self._backend.get_added_tokens_decoder()
        secret = secrets.token_hex(16)
        self._aliases = {t: f"<{secret}.{i}>" for t, i in self.special_tokens.items() if t}
        tokens = []
        for text, alias in self._aliases.items():
            real = added[self.special_tokens[text]]
            tokens.append(
                AddedToken(
                    alias,
                    single_word=real.single_word,
                    lstrip=real.lstrip,
                    rstrip=real.rstrip,
                    normalized=False,
                    special=False,
                )
            )
        self._backend.add_tokens(tokens)
        ids = {alias: self._backend.token_to_id(alias) for alias in self._aliases.values()}
        self._aliased = {
            i: self.special_tokens[text]
            for text, alias in self._aliases.items()
            if (i := ids[alias]) is not None
        }
        return self._aliases

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Turn ids into text; ids outside the vocabulary yield nothing."""
        known = [i for i in ids if 0 <= i < self.vocab_size]
        with _damaged("is"):
            return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token spelled as in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`), or None."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def id_to_piece(self, token_id: int) -> bytes:
        """The raw bytes that one token stands for; empty for an id outside the vocabulary.

        What depends on a token's place (the space dropped before the first word) is not applied.
        """
        token = self.id_to_token(token_id)
        return b"" if token is None else decoding.piece(self.decoder_steps, token)

    def is_special(self, token: str) -> bool:
        """Whether a token, spelled as in the vocabulary, is a control token."""
        return token in self.special_tokens

    def _find_bos(self, special: SpecialTokens) -> int | None:
        if "bos_token" in special.stated:
            text = special.texts.get("bos_token")
            return None if text is None else self.token_to_id(text)
        known = [i for i in special.bos_ids if i < self.vocab_size]
        return known[0] if known else None

    def _find_eos(self, special: SpecialTokens) -> tuple[int, ...]:
        own = self.token_to_id(special.texts.get("eos_token", ""))
        return tuple(dict.fromkeys([*([] if own is None else [own]), *special.eos_ids]))

    def _added_ids(self) -> list[int]:
        """The ids that the post-processor puts around any text."""
        ids: list[int] = self._backend.encode("", add_special_tokens=True).ids
        if len(ids) > MAX_ADDED or any(i >= self.vocab_size for i in ids):
            raise TokenizerError(
                f"the tokenizer's post-processor adds {len(ids)} ids to every text, some of them "
                f"perhaps outside the vocabulary of {self.vocab_size}: the file is damaged"
            )
        return ids


@contextlib.contextmanager
def _damaged(which: str) -> Iterator[None]:
    """What the library raises as a TokenizerError: its faults, and its panics too.

    On a damaged file its parser may panic, or what uses the file later; that is no `Exception`.
    """
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"the tokenizer {which} damaged ({_first_line(error)}): download it again"
        ) from error


def _check_unicode(text: str) -> None:
    try:
        text.encode()  # the library says only that it is no text
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds a lone surrogate at character {error.start}, "
            "which is not valid Unicode: send valid UTF-8"
        ) from error


def _build(folder: Path, keep_in: Path | None) -> Backend:
    """Choose the files: tokenizer.json, vocab.json + merges.txt, ranks, .model, then RWKV's."""
    if (folder / "tokenizer.json").exists():
        return _load_json(folder) if keep_in is None else _load_kept(folder, keep_in)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return build_byte_level(folder)
    ranks = find_ranks(folder)
    if ranks is not None:
        return build_tiktoken(folder, ranks)
    if (folder / "tokenizer.model").exists():
        return build_sentencepiece(folder)
    if (folder / FILE).exists():
        return build_greedy(folder)
    raise TokenizerError(
        f"{folder} holds no tokenizer: looked for tokenizer.json, vocab.json + merges.txt, "
        f"tokenizer.model and {FILE}; copy them from the model's source folder"
    )


def _load_kept(folder: Path, keep_in: Path) -> tokenizers.Tokenizer | PartialBackend:
    """As `_load_json`, by way of a file that holds a large vocabulary; made if not there."""
    import tokenizers

    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    check_size(files[0])
    if files[0].stat().st_size < SMALLEST_KEPT:
        return _load_json(folder)
    states = (file_state(file, file.name) for file in files if file.exists())
    name = key(*source_state("text"), tokenizers.__version__, str(folder.resolve()), *states)
    path = keep_in / f"{folder.resolve().name[:80]}-{name[:16]}.sqlite"
    if (store := open_store(path)) is not None:
        return PartialBackend(store, partial(_load_json, folder))
    whole = _load_json(folder)
    if not path.exists() or path.stat().st_size > 0:  # an empty one: it cannot be kept
        keep(whole, path)
    return whole


def _load_json(folder: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    check_size(path)
    backend = Backend.from_buffer(path.read_bytes())
    _refuse_expansion(_component(backend.normalizer), path)
    _refuse_expansion(_component(backend.decoder), path)
    add_configured_tokens(backend, read_optional(folder / "tokenizer_config.json"), folder)
    return backend


def _component(part: Any) -> dict[str, Any] | None:
    """A normalizer or decoder of the library as the JSON object it was read from."""
    return None if part is None else json.loads(part.__getstate__())


def _refuse_expansion(component: dict[str, Any] | None, path: Path) -> None:
    """Refuse a chain of replacements that could blow a short text up beyond all memory."""
    factor = 1.0
    for step in decoding.flatten(component):
        if step.get("type") == "Replace":
            pattern: dict[str, str] = step["pattern"]
            factor *= max(1, len(step["content"]) / max(1, len(pattern.get("String", "x"))))
    if factor > MAX_EXPANSION:
        raise TokenizerError(
            f"{path}: its replacements may grow a text {factor:.0f} times, at most "
            f"{MAX_EXPANSION} times is allowed: the file is hostile or damaged"
        )


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
