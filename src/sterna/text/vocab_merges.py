"""Byte-level BPE from vocab.json + merges.txt, for folders without a tokenizer.json.

In: a folder and the added tokens its configuration lists; out: a backend tokenizer that cuts
words as the named tokenizer class does. Knows the two classes whose models are published in this
form, GPT-2's and Qwen2's; any other class is refused rather than guessed, for a wrong cut gives
wrong ids silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.errors import TokenizerError
from sterna.text.json_file import check_size, read_optional
from sterna.text.special_tokens import NAMES, token_text

if TYPE_CHECKING:
    import tokenizers

GPT2, QWEN2 = "gpt2", "qwen2"
CLASSES = {
    "GPT2Tokenizer": GPT2,
    "GPT2TokenizerFast": GPT2,
    "CodeGenTokenizer": GPT2,
    "CodeGenTokenizerFast": GPT2,
    "Qwen2Tokenizer": QWEN2,
    "Qwen2TokenizerFast": QWEN2,
}
MODEL_TYPES = {GPT2: GPT2, "gpt_bigcode": GPT2, "phi": GPT2, "codegen": GPT2} | dict.fromkeys(
    (QWEN2, "qwen2_moe", "qwen3", "qwen3_moe"), QWEN2
)
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
# The class's own control token, where no configuration names one.
END_OF_TEXT = "<|endoftext|>"
# The pattern of Qwen2's published tokenizer.json.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_byte_level(folder: Path) -> tokenizers.Tokenizer:
    """Build the backend; TokenizerError for damaged files or an unknown tokenizer class."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders
    from tokenizers.models import BPE

    config = read_optional(folder / "tokenizer_config.json")
    family = _family(folder, config)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    check_size(vocab)
    check_size(merges)
    backend = Backend(BPE.from_file(str(vocab), str(merges)))
    _set_words(backend, family, bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    _add_listed(backend, read_optional(folder / "added_tokens.json"), config, folder)
    add_configured_tokens(backend, config, folder)
    backend.add_special_tokens(_named_tokens(backend, folder, config))
    if config.get("add_bos_token") and config.get("bos_token") is not None:
        set_start(backend, token_text(config["bos_token"], "bos_token"))
    return backend


def _family(folder: Path, config: dict[str, Any]) -> str:
    """Which rule cuts words: told by the tokenizer class, else by the model type."""
    name = config.get("tokenizer_class")
    model_type = read_optional(folder / "config.json").get("model_type")
    family = CLASSES.get(str(name)) if name else MODEL_TYPES.get(str(model_type))
    if family is None:
        raise TokenizerError(
            f"{folder} has vocab.json and merges.txt of tokenizer class {name!r} (model type "
            f"{model_type!r}), and Sterna knows {', '.join(CLASSES)} in this form: put the "
            "model's tokenizer.json beside them"
        )
    return family


def _set_words(backend: tokenizers.Tokenizer, family: str, add_prefix_space: bool) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    if family == GPT2:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        return
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )


def _named_tokens(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> list[str]:
    """Control tokens that the configuration names, or the class's own, if in the vocabulary."""
    named = read_optional(folder / "special_tokens_map.json") | config
    texts = [token_text(named[name], name) for name in NAMES if named.get(name) is not None]
    return [text for text in [*texts, END_OF_TEXT] if backend.token_to_id(text) is not None]


def _add_listed(
    backend: tokenizers.Tokenizer, listed: dict[str, Any], config: dict[str, Any], folder: Path
) -> None:
    """Add added_tokens.json (text -> id) unless the configuration describes the tokens itself."""
    if config.get("added_tokens_decoder"):
        return
    described = {str(i): {"content": text, "special": True} for text, i in listed.items()}
    add_configured_tokens(backend, {"added_tokens_decoder": described}, folder)


def add_configured_tokens(
    backend: tokenizers.Tokenizer, config: dict[str, Any], folder: Path
) -> None:
    """Add the tokens of `added_tokens_decoder` that are missing, each at the id it claims."""
    from tokenizers import AddedToken

    have = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    for token_id, described in sorted(_described(config, folder).items()):
        text = token_text(described, f"added token {token_id}")
        if text in have:
            continue  # the tokenizer's own file is the authority
        token = AddedToken(text, **{flag: described[flag] for flag in FLAGS if flag in described})
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if (found := backend.token_to_id(text)) != token_id:
            raise TokenizerError(
                f"{folder}: the configuration gives the token {text!r} the id {token_id}, the "
                f"vocabulary {found}: the files do not belong together, download them again"
            )


def _described(config: dict[str, Any], folder: Path) -> dict[int, dict[str, Any]]:
    described = config.get("added_tokens_decoder") or {}
    try:
        return {int(token_id): dict(value) for token_id, value in described.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder}/tokenizer_config.json: added_tokens_decoder must map ids to objects"
        ) from error


def set_start(backend: tokenizers.Tokenizer, text: str) -> None:
    """Let every text begin with the start token `text`."""
    from tokenizers.processors import TemplateProcessing

    token_id = backend.token_to_id(text)
    if token_id is None:
        raise TokenizerError(f"the start token {text!r} is not in the vocabulary")
    backend.post_processor = TemplateProcessing(
        single=[text, "$A"], special_tokens=[(text, token_id)]
    )
