"""A request to what the engine runs: prompts as ids, checked options, a grammar, an assembler.

All that can be wrong with a request is found here, on the caller's thread, and raised as
RequestError before the engine hears of it. Knows no threads and no queues.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeGuard, TypeVar

from sterna.base.errors import RequestError
from sterna.engine import grammar_source
from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion
from sterna.engine.api_request import (
    ChatFields,
    CompletionFields,
    ResponseFormat,
    read_chat,
    read_completion,
    sampling_of,
)
from sterna.engine.assemble import (
    Assembler,
    ChatChunks,
    CompletionChunks,
    Reply,
    WholeChat,
    WholeCompletion,
)
from sterna.engine.chat_prompt import chat_prompt
from sterna.engine.generation import Ask
from sterna.engine.grammar import Grammar
from sterna.engine.image_reader import MAX_IMAGES, check_library
from sterna.engine.messages import image_urls
from sterna.engine.offer import Offer, offer_of
from sterna.engine.options import SamplingOptions, override
from sterna.engine.parts import Parts
from sterna.engine.pictures import Patches, Shown, with_pictures
from sterna.engine.prefix import NO_ADAPTER
from sterna.engine.reasoning import Start
from sterna.engine.tool_syntax import ToolSyntax

T = TypeVar("T")
MAX_ANSWERS = 1024  # to one request
_LIGHT = 4096  # characters, or values
_HEAVY = frozenset({"tools", "response_format", "image_url"})
Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """What to ask, and who makes the results."""

    asks: tuple[Ask, ...]
    assembler: Assembler[T]


def is_light(given: object) -> bool:
    """Whether plain data takes less than a millisecond or so to prepare: it is short."""
    left = _LIGHT
    values: list[Any] = [given]
    while values and left >= 0:
        value = values.pop()
        kind = type(value)
        if kind is str:
            left -= len(value)
        elif kind is dict:
            if not _HEAVY.isdisjoint(value):
                return False
            values += value.values()
        elif kind is list or kind is tuple:
            left -= len(value)
            values += value[: max(left, 0)]
        left -= 1
    return left >= 0


def chat_ids(parts: Parts, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[int]:
    """The prompt that a conversation becomes."""
    request = read_chat({"messages": messages, "tools": tools})
    return _shown_prompt(parts, request, offer_of(request))[0].ids


def _shown_prompt(parts: Parts, request: ChatFields, offer: Offer | None) -> tuple[Shown, Start]:
    """The prompt with what its images become."""
    urls = image_urls(request.messages)
    images = read_images(parts, urls)
    ids, start = chat_prompt(parts, request, offer)
    vision = None if parts.images is None else parts.images.vision
    return with_pictures(ids, images, vision, parts.model_name), start


def read_images(parts: Parts, urls: Mapping[str, str]) -> list[Patches]:
    """The patches of images by the names of their fields; RequestError for a model of text."""
    if not urls:
        return []
    first = next(iter(urls))
    if parts.images is None:
        raise RequestError(
            f"{first} is an image, and {parts.model_name} reads text alone; leave images out or "
            "choose a model that takes them",
            first,
        )
    if len(urls) > MAX_IMAGES:
        raise RequestError(
            f"the request has {len(urls)} images, possible are up to {MAX_IMAGES}", "messages"
        )
    check_library()
    return [parts.images.read(url, where) for where, url in urls.items()]


def chat_job(
    parts: Parts, messages: Sequence[Message], model: str | None, given: Mapping[str, Any]
) -> Job[ChatCompletion]:
    if given.get("stream_options") is not None:
        raise RequestError("stream_options needs stream=True", "stream_options")
    reply, asks = _chat(parts, read_chat(_request("messages", messages, model, given)))
    return Job(asks, WholeChat(reply))


def chat_stream_job(
    parts: Parts, messages: Sequence[Message], model: str | None, given: Mapping[str, Any]
) -> Job[ChatCompletionChunk]:
    reply, asks = _chat(parts, read_chat(_request("messages", messages, model, given)))
    return Job(asks, ChatChunks(reply))


def completion_job(
    parts: Parts, prompt: Prompt, model: str | None, given: Mapping[str, Any], stream: bool
) -> Job[Completion]:
    """With several prompts the answers are numbered through, n for each."""
    if not stream and given.get("stream_options") is not None:
        raise RequestError("stream_options needs stream=True", "stream_options")
    request = read_completion(_request("prompt", prompt, model, given))
    prompts = _prompts(prompt)
    options = _options(parts, request)
    if len(prompts) * options.n > MAX_ANSWERS:
        raise RequestError(
            f"prompt has {len(prompts)} prompts, with {options.n} answers to each, possible are up "
            f"to {MAX_ANSWERS} answers in all; send several requests",
            "prompt",
        )
    if request.best_of is not None and request.best_of != options.n:
        raise RequestError(
            f"best_of is {request.best_of}, possible is n, which is {options.n}: answers are not "
            "compared",
            "best_of",
        )
    echo = _echo(parts, prompts, request, options)
    grammar = _format_grammar(parts, request.response_format, Start.SPEECH)
    ids = [_without_images(parts, _ids(parts, one)) for one in prompts]
    reply = _reply(parts, "cmpl", ids, request, options, echo=echo)
    asks = _asks(parts, reply, options, grammar)
    return Job(asks, CompletionChunks(reply) if stream else WholeCompletion(reply))


def _request(name: str, value: Any, model: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """A caller's keywords as one object; iterators and tuples are lists there."""
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        value = list(value)
    return {**given, name: value, "model": model}


def _chat(parts: Parts, request: ChatFields) -> tuple[Reply, tuple[Ask, ...]]:
    """Render the messages with the model's own template."""
    offer = offer_of(request)
    options = _options(parts, request)
    prompt, start = _shown_prompt(parts, request, offer)
    ids = prompt.ids
    grammar, shown = _format_grammar(parts, request.response_format, start), frozenset[int]()
    if offer is not None:
        grammar = _tools_grammar(parts, request.response_format, offer, start)
        shown = _shown(parts)
    tools = None if offer is None else parts.dialect.tools
    reply = _reply(parts, "chatcmpl", [ids], request, options, start=start, tools=tools)
    asks = _asks(parts, reply, options, grammar, shown)
    seen = (replace(a, pictures=prompt.pictures, spelling=prompt.spelling) for a in asks)
    return reply, tuple(seen)


def _format_grammar(parts: Parts, form: ResponseFormat | None, start: Start) -> Grammar | None:
    source = grammar_source.of_format(form, start, parts.tokenizer.special_tokens)
    return None if source is None else parts.grammars.compile(source, "response_format")


def _tools_grammar(
    parts: Parts, form: ResponseFormat | None, offer: Offer, start: Start
) -> Grammar:
    syntax, specials = parts.dialect.tools, parts.tokenizer.special_tokens
    source = grammar_source.of_tools(offer, syntax, start, specials, form)
    return parts.grammars.compile(source, "tools")


def _shown(parts: Parts) -> frozenset[int]:
    """Special tokens that calls are written with: the parser has to see them."""
    literals = parts.dialect.tools.literals
    found = parts.tokenizer.special_tokens.items()
    return frozenset(token for text, token in found if text and text in literals)


def _options(parts: Parts, request: ChatFields | CompletionFields) -> SamplingOptions:
    names = (parts.model_name, *parts.adapters)
    if request.model is not None and request.model not in names:
        served = ", ".join(repr(name) for name in names)
        raise RequestError(f"model is {request.model!r}, this engine serves {served}", "model")
    options = override(parts.defaults, sampling_of(request))
    _check_bias(parts, options)
    return options


def _echo(
    parts: Parts,
    prompts: Sequence[str | Sequence[int]],
    request: CompletionFields,
    options: SamplingOptions,
) -> tuple[str, ...]:
    if not request.echo:
        return ()
    if options.logprobs:
        raise RequestError(
            "echo does not go with logprobs: log probabilities are those of the answer", "echo"
        )
    return tuple(p if isinstance(p, str) else parts.tokenizer.decode(p) for p in prompts)


def _reply(
    parts: Parts,
    kind: str,
    prompts: Sequence[Sequence[int]],
    request: ChatFields | CompletionFields,
    options: SamplingOptions,
    *,
    start: Start = Start.SPEECH,
    tools: ToolSyntax | None = None,
    echo: tuple[str, ...] = (),
) -> Reply:
    for ids in prompts:
        _check_prompt(parts, ids)
    return Reply(
        id=f"{kind}-{random.getrandbits(96):024x}",
        model=request.model or parts.model_name,
        created=int(time.time()),
        tokenizer=parts.tokenizer,
        prompts=tuple(tuple(ids) for ids in prompts),
        answers=options.n,
        logprobs=options.logprobs,
        usage_chunk=request.stream_options is not None and request.stream_options.include_usage,
        token_ids=bool(request.return_token_ids),
        fingerprint=parts.fingerprint,
        start=start,
        tools=tools,
        echo=echo,
    )


def _asks(
    parts: Parts,
    reply: Reply,
    options: SamplingOptions,
    grammar: Grammar | None,
    shown: frozenset[int] = frozenset(),
) -> tuple[Ask, ...]:
    adapter = parts.adapters.get(reply.model, NO_ADAPTER)
    return tuple(
        Ask(prompt, options, _seed(options), i * options.n, grammar, shown, adapter)
        for i, prompt in enumerate(reply.prompts)
    )


def _seed(options: SamplingOptions) -> int:
    return random.getrandbits(64) if options.seed is None else options.seed % 2**64


def _check_prompt(parts: Parts, ids: Sequence[int]) -> None:
    vocab, window = parts.vocabulary, parts.limits.window
    if not ids:
        raise RequestError("the prompt is empty; give at least one token of text", "prompt")
    if len(ids) >= window:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, the context window is {window} tokens for prompt "
            "and answer; shorten the prompt or raise context_window_size if the model allows",
            code="context_length_exceeded",
        )
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocab:
            raise RequestError(f"the prompt has token id {token}, possible are 0 to {vocab - 1}")


def _check_bias(parts: Parts, options: SamplingOptions) -> None:
    vocab = parts.vocabulary
    for token in options.logit_bias:
        if token >= vocab:
            raise RequestError(f"logit_bias has token id {token}, possible are 0 to {vocab - 1}")


def _prompts(prompt: Prompt) -> list[str | Sequence[int]]:
    """One prompt, or several: text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Sequence) or not prompt:
        raise RequestError(f"prompt is {prompt!r}, possible is text, token ids, or a list of those")
    if _is_ids(prompt):
        return [prompt]
    several: list[str | Sequence[int]] = []
    for item in prompt:
        if not isinstance(item, str) and not _is_ids(item):
            raise RequestError(f"prompt has {item!r} in it, possible is text or token ids")
        several.append(item)
    return several


def _is_ids(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, list | tuple) and all(type(token) is int for token in value)


def _without_images(parts: Parts, ids: Sequence[int]) -> Sequence[int]:
    """The prompt, which must not have the place of an image."""
    vision = None if parts.images is None else parts.images.vision
    if vision is not None and vision.image_token in ids:
        raise RequestError(
            f"the prompt has token {vision.image_token}, which is the place of an image; images go "
            "with chat completions, as parts of type image_url",
            "prompt",
        )
    return ids


def _ids(parts: Parts, prompt: str | Sequence[int]) -> Sequence[int]:
    """Token ids of one prompt; control tokens spelled out in a raw prompt are tokens."""
    if not isinstance(prompt, str):
        return prompt
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token of text", "prompt")
    return parts.tokenizer.encode(prompt, add_special_tokens=True, allow_special=True)
