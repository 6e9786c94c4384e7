"""Requests and results that are the server's own; those of completions are the engine's.

Strict like the engine's: a field that is not here is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

JsonObject = dict[str, Any]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class _Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None


class ModelCard(msgspec.Struct, kw_only=True):
    """`max_model_len`: most tokens that prompt and answer may have together.

    `parent` is the model that an adapter is loaded beside.
    """

    id: str
    created: int
    max_model_len: int
    parent: str | None = None
    owned_by: str = "sterna"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, kw_only=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class TokenizeRequest(_Request):
    """Either `prompt`, a text, or `messages`, a conversation as the model's template writes it."""

    prompt: str | None = None
    messages: list[JsonObject] | None = None
    tools: list[JsonObject] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeResult(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(_Request):
    tokens: Annotated[list[TokenId], Meta(max_length=2**20)]


class DetokenizeResult(msgspec.Struct, kw_only=True):
    prompt: str


class Health(msgspec.Struct, kw_only=True):
    """`status`: ok, draining, or failed, and then `message` says why."""

    status: Literal["ok", "draining", "failed"]
    message: str | None = None


class Version(msgspec.Struct, kw_only=True):
    version: str


class EmbeddingsRequest(_Request):
    """`input`: a text, its token ids, or a list of either. `user` is for OpenAI's own records."""

    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding` is a list of numbers or, where asked for, their float32 bytes in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
