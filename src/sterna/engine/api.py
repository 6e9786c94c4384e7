"""What callers get back: the shapes of OpenAI's chat and text completions, as typed structs.

Attribute access, `model_dump()` and `model_dump_json()` work as on openai's own objects. Beside
those shapes there are `timings`, `reasoning_content` and, on text completions, the token ids when
asked for. What callers send is in api_request.py.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]


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


class Sparse(Shape, omit_defaults=True):
    """A result whose absent fields are left out of its JSON, as OpenAI does for these."""


class PromptTokensDetails(Shape):
    """`cached_tokens`: how many of the prompt's tokens were reused, not computed."""

    cached_tokens: int


class CompletionTokensDetails(Shape):
    """`reasoning_tokens`: how many of the answer's tokens were thinking, marks included.

    The predictions are the guesses of speculative decoding; only speed depends on them.
    """

    reasoning_tokens: int
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


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
    """Of every token of an answer, those of its reasoning and tool calls too."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Shape):
    """`arguments` is JSON text that satisfies the tool's schema."""

    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Sparse):
    """`content` is None where there are tool calls and nothing else was said."""

    role: Literal["assistant"] = msgspec.field()
    content: str | None = msgspec.field()
    refusal: None = msgspec.field()
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Shape):
    """`shortened`: in a grammar, and brought to an early end by max_tokens or the window."""

    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    shortened: bool | None = None


class ChatCompletion(Shape):
    id: str
    model: str
    created: int
    choices: list[Choice]
    usage: Usage
    timings: Timings
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class FunctionDelta(Sparse):
    """The name comes first and whole; arguments come in pieces."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Sparse):
    """A piece of the tool call number `index`; id and type come with its name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class ChoiceDelta(Sparse):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Shape):
    index: int
    delta: ChoiceDelta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    shortened: bool | None = None


class ChatCompletionChunk(Shape):
    """`usage` and `timings` come in one last chunk without choices, when asked for."""

    id: str
    model: str
    created: int
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
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
    shortened: bool | None = None


class Completion(Shape):
    """A text completion, or one chunk of its stream: the same shape, as OpenAI has it."""

    id: str
    model: str
    created: int
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
