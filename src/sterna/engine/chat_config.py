"""What a model folder says on how it wants to be asked: sampling defaults and what ends an answer.

In: the folder's `mlc-chat-config.json` and `sterna.json`. Out: ChatConfig. Files are checked, not
trusted. Knows no weights, no library and no tokenizer files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sterna.base.artifact import Manifest
from sterna.base.errors import ArtifactError, RequestError
from sterna.engine.options import SamplingOptions, override
from sterna.text.json_file import read_optional

CONFIG = "mlc-chat-config.json"
RECEIPT = "sterna.json"
RAW = "LM"  # MLC's name for no template at all: roles without a mark between them

_DEFAULTS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """`fingerprint` is None in folders that Sterna did not write.

    The tokenizer knows the model's own end tokens; `stop_ids` are the chat template's.
    """

    model_type: str | None = None
    quantization: str | None = None
    fingerprint: str | None = None
    defaults: SamplingOptions = field(default_factory=SamplingOptions)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    conv_template: Mapping[str, Any] | None = None


def read_chat_config(folder: Path) -> ChatConfig:
    """Read both files; ArtifactError where a value makes no sense."""
    path = folder / CONFIG
    config = read_optional(path)
    template = config.get("conv_template")
    template = template if isinstance(template, Mapping) else {}  # older folders have a name
    try:
        defaults = override(SamplingOptions(), {k: config[k] for k in _DEFAULTS if k in config})
    except RequestError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return ChatConfig(
        model_type=_text(config.get("model_type")),
        quantization=_text(config.get("quantization")),
        fingerprint=_text(read_optional(folder / RECEIPT).get("fingerprint")),
        defaults=defaults,
        stop_ids=_ids(path, template.get("stop_token_ids")),
        stop_strings=_strings(path, template.get("stop_str")),
        conv_template=None if template.get("name") == RAW else template or None,
    )


def check_library(config: ChatConfig, manifest: Manifest, folder: Path, library: Path) -> None:
    """ArtifactError unless the library was compiled for this folder's model."""
    model = manifest.model
    for name, found, wanted in (
        ("model type", config.model_type, model.model_type),
        ("quantization", config.quantization, model.quantization),
        ("fingerprint", config.fingerprint, model.fingerprint),
    ):
        if found is not None and found != wanted:
            raise ArtifactError(
                f"{library} was compiled for another model than {folder}: its {name} is "
                f"{wanted}, the folder's is {found}; compile the folder again"
            )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _ids(path: Path, value: Any) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ArtifactError(f"{path}: {value!r} is no token id nor a list of token ids")
    return frozenset(ids)


def _strings(path: Path, value: Any) -> tuple[str, ...]:
    strings = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in strings):
        raise ArtifactError(f"{path}: stop_str is {value!r}, possible are strings")
    return tuple(text for text in strings if text)
