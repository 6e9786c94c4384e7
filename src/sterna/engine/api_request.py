"""What callers send: the fields of OpenAI's chat and text completions, as typed structs.

Every documented field is here, or in `CHAT_REFUSED` and `COMPLETION_REFUSED` with the reason. The
sampling fields are those of `SamplingOptions`, declared there and nowhere else. A server takes its
OpenAPI document from `ChatRequest` and `CompletionRequest` and hands a decoded body to `read_chat`
or `read_completion`, which raise RequestError naming the field for whatever does not fit. Beside
OpenAI's fields stand vLLM's where the meaning is the same. Knows no model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from sterna.base.errors import RequestError
from sterna.engine.field_values import possible_values
from sterna.engine.options import MAX_STOPS, SAMPLING_NAMES, SamplingOptions, override

T = TypeVar("T", bound=msgspec.Struct)
JsonObject = dict[str, Any]
Name = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]+$", min_length=1, max_length=64)]

MAX_TOOLS = 128
MAX_LABELS = 16

CHAT_REFUSED: Mapping[str, str] = {
    "audio": "answers are text",
    "function_call": "it was replaced by tool_choice",
    "functions": "they were replaced by tools",
    "moderation": "nothing is moderated",
    "prediction": "answers are not predicted by the caller",
    "prompt_cache_options": "prompts are reused by their tokens, whoever sent them",
    "web_search_options": "there is no web search",
}
COMPLETION_REFUSED: Mapping[str, str] = {
    "suffix": "the models are trained to continue a text, not to fill it in",
}


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a request; a field that it does not have is an error."""


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """The image itself, as data:image/png;base64,...: nothing is fetched."""

    url: str
    detail: Literal["auto"] | None = None  # a model looks at each image in its own way


class ImagePart(_Part, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class TaggedText(_Part, tag_field="type", tag="text"):
    """A TextPart among images."""

    text: str


Text = str | list[TextPart]
Content = str | list[TaggedText | ImagePart]


class FunctionArguments(_Part):
    """A call that an assistant made: `arguments` is the text of a JSON object."""

    name: Name
    arguments: str


class AssistantToolCall(_Part):
    type: Literal["function"]
    id: str
    function: FunctionArguments


class SystemMessage(_Part, tag_field="role", tag="system"):
    content: Text
    name: str | None = None


class DeveloperMessage(_Part, tag_field="role", tag="developer"):
    """A system message under its newer name."""

    content: Text
    name: str | None = None


class UserMessage(_Part, tag_field="role", tag="user"):
    content: Content
    name: str | None = None


class AssistantMessage(_Part, tag_field="role", tag="assistant"):
    """An earlier answer, as it was given: it needs content or tool calls."""

    content: Text | None = None
    name: str | None = None
    tool_calls: Annotated[list[AssistantToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolMessage(_Part, tag_field="role", tag="tool"):
    """What a tool gave back for the call `tool_call_id`."""

    content: Text
    tool_call_id: str
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionDefinition(_Part):
    """`parameters` is a JSON schema of an object; without one the function takes nothing."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Part):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Part):
    name: str


class NamedTool(_Part, tag_field="type", tag="function"):
    function: NamedFunction


class AllowedTool(_Part):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(_Part):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(_Part, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class TextFormat(_Part, tag_field="type", tag="text"):
    """No constraint."""


class JsonObjectFormat(_Part, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(_Part):
    """The answer satisfies `schema` whether or not `strict` is set."""

    name: Name
    schema: JsonObject | bool = True
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Part, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class GrammarDefinition(_Part):
    """`syntax`: lark, regex, or ebnf in the dialect of llama.cpp's GBNF."""

    syntax: Literal["lark", "regex", "ebnf"]
    definition: str


class GrammarFormat(_Part, tag_field="type", tag="grammar"):
    """An answer that the grammar derives; spelled as in OpenAI's custom tools."""

    grammar: GrammarDefinition


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat


class StreamOptions(_Part):
    """`include_obfuscation` may be sent and must be false: chunks are not padded."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


Labels = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=MAX_LABELS),
]


class _Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of request have, beside the sampling fields."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Annotated[str | None, Meta(description="a label; it changes nothing")] = None
    return_token_ids: Annotated[
        bool | None, Meta(description="add the ids of prompt and answer")
    ] = None


class ChatFields(_Common):
    """A chat request without its sampling fields: what type checkers see of `ChatRequest`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: (
        Annotated[int, Meta(ge=1, description="the newer name of max_tokens")] | None
    ) = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="whether an answer may make several calls (default: yes)")
    ] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        Meta(description="none: answer without thinking, where the model's template can"),
    ] = None
    chat_template_kwargs: Annotated[
        JsonObject | None, Meta(description="variables for the model's chat template")
    ] = None
    metadata: Annotated[Labels | None, Meta(description="labels; they change nothing")] = None
    safety_identifier: Annotated[str | None, Meta(description="a label")] = None
    prompt_cache_key: Annotated[
        str | None, Meta(description="a label: prompts are reused by their tokens")
    ] = None
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Annotated[Literal[False] | None, Meta(description="nothing is stored")] = None
    verbosity: Literal["medium"] | None = None


Ids = Annotated[list[int], Meta(min_length=1)]
Prompt = str | list[str | int | Ids]


class CompletionFields(_Common):
    """A completion request without its sampling fields; `logprobs` is a number here."""

    prompt: Annotated[Prompt, Meta(description="text, token ids, or a list of either")]
    logprobs: Annotated[
        int | bool | None,
        Meta(description="log probabilities of each token and of this many likeliest, up to 20"),
    ] = None
    echo: Annotated[bool | None, Meta(description="repeat the prompt before its answer")] = None
    best_of: Annotated[int, Meta(ge=1, description="n, and nothing else")] | None = None


def _sampling_fields(without: frozenset[str] = frozenset()) -> list[tuple[str, Any, Any]]:
    return [
        (option.name, _wire_type(option), None)
        for option in fields(SamplingOptions)
        if option.name not in without
    ]


def _sampling_names(kind: type[msgspec.Struct]) -> set[str]:
    """Of a completion's `logprobs` its own type takes care."""
    names = set(SAMPLING_NAMES)
    return names - _COMPLETION_OWN if kind is CompletionRequest else names


def _wire_type(option: Field[Any]) -> Any:
    """The type of an option in JSON; null stands for "not given"."""
    meta, kind = option.metadata, option.metadata["kind"]
    if option.name == "stop":
        several = Annotated[list[str], Meta(max_length=MAX_STOPS)]
        return Annotated[str | several | None, Meta(description=meta["help"])]
    bounds = {"ge": meta.get("lo"), "le": meta.get("hi")}
    fitting = {k: v for k, v in bounds.items() if v is not None and abs(v) < 2**63}
    if kind is dict:
        number = Annotated[float, Meta(**fitting)]
        return Annotated[dict[str, number] | None, Meta(description=meta["help"])]
    limited = kind if kind is bool else Annotated[kind, Meta(**fitting)]
    return Annotated[limited | None, Meta(description=meta["help"])]


_COMPLETION_OWN = frozenset({"logprobs", "top_logprobs"})

ChatRequest = cast(
    type[ChatFields],
    msgspec.defstruct(
        "ChatRequest",
        _sampling_fields(),
        bases=(ChatFields,),
        kw_only=True,
        module=__name__,
    ),
)
CompletionRequest = cast(
    type[CompletionFields],
    msgspec.defstruct(
        "CompletionRequest",
        _sampling_fields(_COMPLETION_OWN),
        bases=(CompletionFields,),
        kw_only=True,
        module=__name__,
    ),
)


def read_chat(given: Mapping[str, Any]) -> ChatFields:
    """Check a chat request; RequestError for the first thing that is wrong with it.

    `given` holds JSON data, or a Python caller's keywords; messages and tool calls may be objects
    with `model_dump`, as openai's and our own are.
    """
    request = _read(ChatRequest, given, CHAT_REFUSED)
    newer, older = request.max_completion_tokens, given.get("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise RequestError(
            f"max_completion_tokens is {newer} and max_tokens, its older name, is {older}; give one"
        )
    return request


def read_completion(given: Mapping[str, Any]) -> CompletionFields:
    """Check a completion request; RequestError for the first thing that is wrong with it."""
    return _read(CompletionRequest, given, COMPLETION_REFUSED)


def sampling_of(request: ChatFields | CompletionFields) -> dict[str, Any]:
    """The sampling options that were given, under the names of SamplingOptions."""
    given = {name: getattr(request, name, None) for name in SAMPLING_NAMES}
    if isinstance(request, CompletionFields):
        given |= _wanted_logprobs(request.logprobs)
    elif request.max_completion_tokens is not None:
        given["max_tokens"] = request.max_completion_tokens
    return {name: value for name, value in given.items() if value is not None}


def _wanted_logprobs(value: Any) -> dict[str, Any]:
    """Text completions write logprobs=5 where chats write logprobs=True, top_logprobs=5."""
    if value is None or isinstance(value, bool):
        return {"logprobs": value}
    return {"logprobs": True, "top_logprobs": value}


def _read(kind: type[T], given: Mapping[str, Any], refused: Mapping[str, str]) -> T:
    """Sampling options are checked by their own rules, everything else by its type."""
    present = {name: value for name, value in given.items() if value is not None}
    for name in given:
        _check_name(name, name in present, kind.__struct_fields__, refused)
    sampling = {name: present.pop(name) for name in _sampling_names(kind) & present.keys()}
    checked = override(SamplingOptions(), sampling)
    request = _convert(kind, present)
    for name in sampling:
        setattr(request, name, getattr(checked, name))
    return request


def _check_name(
    name: str, given: bool, possible: tuple[str, ...], refused: Mapping[str, str]
) -> None:
    if name in refused:
        if given:
            raise RequestError(f"{name} is not supported: {refused[name]}", name)
    elif name not in possible:
        close = difflib.get_close_matches(name, possible, 1)
        hint = f"did you mean {close[0]}?" if close else f"possible are {', '.join(possible)}"
        raise RequestError(f"unknown or unsupported option {name!r}; {hint}", name)


def _convert(kind: type[T], present: Mapping[str, Any]) -> T:
    plain = _plain(present)
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise _request_error(kind, str(error), plain) from None


def _plain(value: Any) -> Any:
    """Objects of openai's client and of our own become the JSON data that they stand for."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _request_error(kind: type, message: str, given: object) -> RequestError:
    """ "Expected `str`, got `int` - at `$.messages[0].content`" with the field in front."""
    text, _, path = message.partition(" - at `$")
    param = path.removesuffix("`").removeprefix(".")
    text = (text[:1].lower() + text[1:]).replace("`", "")
    if text.startswith("invalid") and (possible := possible_values(kind, param, given)):
        text += f"; possible {'is' if len(possible) == 1 else 'are'} {', '.join(possible)}"
    return RequestError(f"{param}: {text}" if param else text, param or None)
