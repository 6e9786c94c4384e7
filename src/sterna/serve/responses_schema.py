"""OpenAI's responses: what a client sends, and the objects and stream events that it gets.

Strict as everywhere: a field or an item that is not here is refused by name. Nothing is stored, so
what refers to an earlier response is refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sterna.engine.api_request import JsonObject, Labels

Status = Literal["in_progress", "completed", "incomplete", "failed"]

REFUSED: Mapping[str, str] = {
    "access_programs": "there are none",
    "background": "answers are made while the client waits",
    "background_options": "answers are made while the client waits",
    "context_management": "send the conversation as it should be read",
    "conversation": "nothing is stored; send the conversation in input",
    "image": "answers are text",
    "max_tool_calls": "tools are the caller's, so it counts their calls",
    "moderation": "nothing is moderated",
    "previous_response_id": "nothing is stored; send the conversation in input",
    "prompt": "no prompts are stored; send it in input",
    "prompt_cache_options": "prompts are reused by their tokens, whoever sent them",
}
# Values that say what is done anyway.
HARMLESS: Mapping[str, Any] = {"background": False}


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class _Reasoning(_Part):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: None = None


class _FunctionTool(_Part):
    type: Literal["function"]
    name: str
    parameters: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class _NamedFunction(_Part, tag_field="type", tag="function"):
    name: str


class _AllowedFunction(_Part):
    type: Literal["function"]
    name: str


class _AllowedTools(_Part, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[_AllowedFunction]


class _TextFormat(_Part, tag_field="type", tag="text"):
    pass


class _ObjectFormat(_Part, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(_Part, tag_field="type", tag="json_schema"):
    name: str
    schema: JsonObject
    description: str | None = None
    strict: bool | None = None


class TextOptions(_Part):
    format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class _StreamOptions(_Part):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(_Part):
    """`input`: a text, or messages, function calls and their outputs in order."""

    input: Annotated[str, Meta(min_length=1)] | Annotated[list[JsonObject], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: Labels | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None
    reasoning: _Reasoning | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    text: TextOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedFunction | _AllowedTools | None = None
    tools: list[_FunctionTool] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None


class InputText(_Part, tag_field="type", tag="input_text"):
    text: str


class OutputOfCall(_Part):
    """As InputText, where nothing else is possible."""

    type: Literal["input_text"]
    text: str


class OutputTextBack(_Part, tag_field="type", tag="output_text"):
    """A part of an earlier answer, sent back as it came."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] | None = None


class InputMessage(_Part):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[InputText | OutputTextBack]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: None = None


class InputCall(_Part):
    call_id: str
    name: str
    arguments: str
    type: Literal["function_call"]
    id: str | None = None
    status: str | None = None
    namespace: None = None


class InputCallOutput(_Part):
    call_id: str
    output: str | list[OutputOfCall]
    type: Literal["function_call_output"]
    id: str | None = None
    status: str | None = None


class ReasoningText(_Part, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningBack(_Part):
    """A part of an earlier answer's thinking, sent back as it came."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(_Part):
    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[Any], Meta(max_length=0)] = []
    content: list[ReasoningBack] | None = None
    encrypted_content: None = None
    status: str | None = None


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning
ITEMS: Mapping[str, type[InputItem]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputCallOutput,
    "reasoning": InputReasoning,
}


class _Out(msgspec.Struct, kw_only=True):
    pass


class Logprob(_Out):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class OutputText(_Out, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Logprob] = []


class ReasoningItem(_Out, tag_field="type", tag="reasoning"):
    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[Any] = []


class MessageItem(_Out, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class CallItem(_Out, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = ReasoningItem | MessageItem | CallItem


class InputDetails(_Out):
    cached_tokens: int


class OutputDetails(_Out):
    reasoning_tokens: int


class ResponseUsage(_Out):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(_Out):
    reason: Literal["max_output_tokens"]


class ResponseError(_Out):
    code: Literal["server_error"]
    message: str


class ResponseObject(_Out):
    """What was asked for comes back with the answer; what was not given is null."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[OutputItem]
    parallel_tool_calls: bool
    text: TextOptions
    tool_choice: Any
    tools: list[_FunctionTool]
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    prompt_cache_key: str | None = None
    reasoning: _Reasoning | None = None
    safety_identifier: str | None = None
    temperature: float | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    user: str | None = None
    background: Literal[False] = False
    object: Literal["response"] = "response"
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    system_fingerprint: str | None = None


class StreamEvent(_Out):
    """One event of a stream; `type` names it and fields that it lacks are left out."""

    type: str
    sequence_number: int
    response: ResponseObject | msgspec.UnsetType = msgspec.UNSET
    output_index: int | msgspec.UnsetType = msgspec.UNSET
    item_id: str | msgspec.UnsetType = msgspec.UNSET
    content_index: int | msgspec.UnsetType = msgspec.UNSET
    item: OutputItem | msgspec.UnsetType = msgspec.UNSET
    part: OutputText | ReasoningText | msgspec.UnsetType = msgspec.UNSET
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[Logprob] | msgspec.UnsetType = msgspec.UNSET
