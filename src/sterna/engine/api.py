"""What callers get back: the shapes of OpenAI's chat and text completions, as typed structs.

Attribute access, `model_dump()` and `model_dump_json()` work as on openai's own objects. Beside
those shapes there are `timings` and, on text completions, the token ids when asked for.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length"]


class Shape(msgspec.Struct, kw_only=True):
    """A result that prints as JSON."""

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return _without_none(plain) if exclude_none else plain

    def model_dump_json(self, *, indent: int | None = None, exclude_none: bool = False) -> str:
        data = msgspec.json.encode(self.model_dump(exclude_none=exclude_none))
        return (data if indent is None else msgspec.json.format(data, indent=indent)).decode()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(Shape):
    """Seconds from the request to its first token, and tokens a second before and after it."""

    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class TopLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Shape):
    content: list[TokenLogprob]


class Message(Shape):
    role: str
    content: str


class Choice(Shape):
    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(Shape):
    id: str
    model: str
    created: int
    choices: list[Choice]
    usage: Usage
    timings: Timings
    object: str = "chat.completion"
    system_fingerprint: str | None = None


class ChoiceDelta(Shape):
    role: str | None = None
    content: str | None = None


class ChunkChoice(Shape):
    index: int
    delta: ChoiceDelta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(Shape):
    """`usage` and `timings` come in one last chunk without choices, when asked for."""

    id: str
    model: str
    created: int
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    object: str = "chat.completion.chunk"
    system_fingerprint: str | None = None


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(Shape):
    """A text completion, or one chunk of its stream: the same shape, as OpenAI has it."""

    id: str
    model: str
    created: int
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    object: str = "text_completion"
    system_fingerprint: str | None = None
