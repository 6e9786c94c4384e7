"""`tokenizer_info` of mlc-chat-config.json: how a token's text becomes bytes, and its spaces.

In: a loaded tokenizer and its folder. Out: the three fields that MLC's runtimes read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sterna.text.json_file import MAX_BYTES, read_object
from sterna.text.tokenizer import Tokenizer


def tokenizer_info(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Read the fields off the decoder's and the encoder's steps."""
    decoder = list(tokenizer.decoder_steps)
    byte_level = any(step.get("type") == "ByteLevel" for step in decoder)
    strips = any(
        _adds_space(step) or (step.get("type") == "Strip" and step.get("start", 0) > 0)
        for step in decoder
    )
    path = folder / "tokenizer.json"
    prepends = strips
    if path.is_file():
        encoder = read_object(path, MAX_BYTES)
        steps = [*_steps(encoder.get("normalizer")), *_steps(encoder.get("pre_tokenizer"))]
        prepends = any(step.get("type") == "Prepend" or _adds_space(step) for step in steps)
    return {
        "token_postproc_method": "byte_level" if byte_level else "byte_fallback",
        "prepend_space_in_encode": prepends,
        "strip_space_in_decode": strips,
    }


def _adds_space(step: Mapping[str, Any]) -> bool:
    """Metaspace puts a space before the text when encoding, and takes it away when decoding."""
    if step.get("type") != "Metaspace":
        return False
    return step.get("prepend_scheme", "always") != "never" and bool(
        step.get("add_prefix_space", True)
    )


def _steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer, with sequences taken apart."""
    if not isinstance(component, Mapping):
        return
    inner = [*component.get("normalizers", ()), *component.get("pretokenizers", ())]
    if not inner:
        yield component
    for step in inner:
        yield from _steps(step)
