"""Byte-level BPE from a file of tiktoken's ranks, for folders that have nothing else.

In: a folder whose tokenizer.model holds lines of a token's bytes, in base64, and its rank. Out: a
backend tokenizer. Merges follow from ranks: two tokens whose bytes together are a token merge as
soon as that token's rank says. The file does not say how words are cut, nor which control tokens
there are; the first is known by model type, the others have to be in the configuration. Nothing is
guessed, for a wrong cut gives wrong ids silently.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.base.errors import TokenizerError
from sterna.text.decoding import ALPHABET
from sterna.text.json_file import check_size, read_optional
from sterna.text.special_tokens import token_text
from sterna.text.vocab_merges import add_configured_tokens, set_start

if TYPE_CHECKING:
    import tokenizers

MAX_RANKS_BYTES = 32 << 20
MAX_TOKEN = 512  # bytes; merges are found by cutting each token everywhere
# The pattern of Llama 3's published tokenizer.json.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {"llama": LLAMA3_WORDS}
_CHARACTERS = {byte: character for character, byte in ALPHABET.items()}


def find_ranks(folder: Path) -> Path | None:
    """The folder's tokenizer.model, if it begins as a list of ranks does."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        fields = file.readline(2 * MAX_TOKEN).split(b" ")
    try:
        base64.b64decode(fields[0], validate=True)
    except binascii.Error:
        return None
    return path if len(fields) == 2 and fields[1].strip().isdigit() else None


def build_tiktoken(folder: Path, path: Path) -> tokenizers.Tokenizer:
    """Build the backend; TokenizerError for damaged files and models of other words."""
    from tokenizers import Regex, decoders, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    model_type = _model_type(folder)
    words = WORDS.get(model_type)
    config = read_optional(folder / "tokenizer_config.json")
    if words is None or not config.get("added_tokens_decoder"):
        missing = "tokenizer_config.json with the control tokens" if words else "model type"
        raise TokenizerError(
            f"{path} holds tiktoken's ranks, which need a known {missing} beside them (the model "
            f"type is {model_type[:80]!r}, known: {', '.join(WORDS)}): put the model's "
            "tokenizer.json there"
        )
    check_size(path, MAX_RANKS_BYTES)
    ranks = parse_ranks(path.read_bytes(), path)
    vocab = {_spelled(token): rank for token, rank in ranks.items()}
    pairs = [(_spelled(left), _spelled(right)) for left, right in merges(ranks)]
    backend = Backend(BPE(vocab, pairs, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    add_configured_tokens(backend, config, folder)
    if config.get("add_bos_token") and config.get("bos_token") is not None:
        set_start(backend, token_text(config["bos_token"], "bos_token"))
    return backend


def _model_type(folder: Path) -> str:
    """As the source's configuration says, or that of a converted folder."""
    configs = (read_optional(folder / name) for name in ("config.json", "mlc-chat-config.json"))
    return str(next((c["model_type"] for c in configs if "model_type" in c), None))


def parse_ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """The tokens in order of rank, which counts from 0; TokenizerError for anything else."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        fields = line.split(b" ")
        try:
            token = base64.b64decode(fields[0], validate=True)
        except binascii.Error:
            token = b""
        rank = fields[1] if len(fields) == 2 else b""
        if not 0 < len(token) <= MAX_TOKEN or rank != str(number).encode() or token in found:
            raise TokenizerError(
                f"{path}: line {number + 1} is no new token in base64 with the rank {number}; the "
                "file is damaged, download it again"
            )
        found[token] = number
    if missing := [byte for byte in range(256) if bytes([byte]) not in found]:
        raise TokenizerError(
            f"{path} has no token for the byte {missing[0]}; it is damaged, or no list of ranks"
        )
    return found


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that form a token, lowest rank of the whole first."""
    found: list[tuple[bytes, bytes]] = []
    for whole in ranks:  # in order of rank
        cuts = ((whole[:i], whole[i:]) for i in range(1, len(whole)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found


def _spelled(token: bytes) -> str:
    """A token in the alphabet of byte-level BPE, a character a byte."""
    return "".join(_CHARACTERS[byte] for byte in token)
