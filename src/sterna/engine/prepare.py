"""A caller's keywords to what the engine runs: prompts as ids, checked options, an assembler.

All that can be wrong with a request is found here, on the caller's thread, and raised as
RequestError before the engine hears of it. Knows no threads and no queues.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeGuard, TypeVar

from sterna.base.errors import RequestError
from sterna.engine.api import ChatCompletion, ChatCompletionChunk, Completion
from sterna.engine.assemble import (
    Assembler,
    ChatChunks,
    CompletionChunks,
    Reply,
    WholeChat,
    WholeCompletion,
)
from sterna.engine.generation import Ask
from sterna.engine.options import SamplingOptions, override
from sterna.engine.parts import Parts
from sterna.text import conv_template

T = TypeVar("T")
Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """What to ask, and who makes the results."""

    asks: tuple[Ask, ...]
    assembler: Assembler[T]


def chat(
    parts: Parts, messages: Sequence[Message], model: str | None, given: Mapping[str, Any]
) -> tuple[Reply, tuple[Ask, ...]]:
    """Render the messages with the model's own template."""
    conversation = [_message(i, message) for i, message in enumerate(_listed(messages))]
    prefix, text = _render(parts, conversation)
    ids = parts.tokenizer.encode(text, add_special_tokens=False, allow_special=True)
    return _reply(parts, "chatcmpl", [[*prefix, *ids]], model, _renamed(given))


def _render(parts: Parts, conversation: Sequence[Message]) -> tuple[list[int], str]:
    if parts.template is not None:
        return [], parts.template.render(conversation)
    if parts.conv_template is not None:
        return conv_template.render(parts.conv_template, conversation)
    raise RequestError(
        f"{parts.model_name} has no chat template; use completions.create with a prompt"
    )


def chat_job(
    parts: Parts, messages: Sequence[Message], model: str | None, given: Mapping[str, Any]
) -> Job[ChatCompletion]:
    reply, asks = chat(parts, messages, model, given)
    return Job(asks, WholeChat(reply))


def chat_stream_job(
    parts: Parts, messages: Sequence[Message], model: str | None, given: Mapping[str, Any]
) -> Job[ChatCompletionChunk]:
    usage, given = _stream_options(given)
    reply, asks = chat(parts, messages, model, given)
    return Job(asks, ChatChunks(replace(reply, usage_chunk=usage)))


def completion_job(
    parts: Parts, prompt: Prompt, model: str | None, given: Mapping[str, Any], stream: bool
) -> Job[Completion]:
    usage, given = _stream_options(given) if stream else (False, given)
    prompts = [_ids(parts, one) for one in _prompts(prompt)]
    reply, asks = _reply(parts, "cmpl", prompts, model, _completion_options(given))
    reply = replace(reply, usage_chunk=usage)
    return Job(asks, CompletionChunks(reply) if stream else WholeCompletion(reply))


def _reply(
    parts: Parts,
    kind: str,
    prompts: Sequence[Sequence[int]],
    model: str | None,
    given: Mapping[str, Any],
) -> tuple[Reply, tuple[Ask, ...]]:
    if model is not None and model != parts.model_name:
        raise RequestError(f"model is {model!r}, this engine serves {parts.model_name!r}")
    given = dict(given)
    token_ids = given.pop("return_token_ids", None) or False
    options = override(parts.defaults, given)
    _check_bias(parts, options)
    for ids in prompts:
        _check_prompt(parts, ids)
    asks = tuple(
        Ask(tuple(ids), options, _seed(options), i * options.n) for i, ids in enumerate(prompts)
    )
    reply = Reply(
        id=f"{kind}-{secrets.token_hex(12)}",
        model=parts.model_name,
        created=int(time.time()),
        tokenizer=parts.tokenizer,
        prompts=tuple(tuple(ids) for ids in prompts),
        answers=options.n,
        logprobs=options.logprobs,
        token_ids=bool(token_ids),
    )
    return reply, asks


def _seed(options: SamplingOptions) -> int:
    return secrets.randbits(64) if options.seed is None else options.seed % 2**64


def _check_prompt(parts: Parts, ids: Sequence[int]) -> None:
    vocab, window = parts.vocabulary, parts.limits.window
    if not ids:
        raise RequestError("the prompt is empty; give at least one token of text")
    if len(ids) >= window:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, the context window is {window} tokens for prompt "
            "and answer; shorten the prompt or raise context_window_size if the model allows"
        )
    for token in ids:
        if not 0 <= token < vocab:
            raise RequestError(f"the prompt has token id {token}, possible are 0 to {vocab - 1}")


def _check_bias(parts: Parts, options: SamplingOptions) -> None:
    vocab = parts.vocabulary
    for token in options.logit_bias:
        if token >= vocab:
            raise RequestError(f"logit_bias has token id {token}, possible are 0 to {vocab - 1}")


def _listed(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise RequestError("messages is not a list; give [{'role': 'user', 'content': ...}]")
    if not (listed := list(messages)):
        raise RequestError("messages is empty; give at least one message")
    return listed


def _message(index: int, message: Any) -> dict[str, str]:
    """Check one message. A message of an earlier reply may come back as the object it was."""
    where = f"messages[{index}]"
    plain = message.model_dump() if hasattr(message, "model_dump") else message
    if not isinstance(plain, Mapping) or not isinstance(plain.get("role"), str):
        raise RequestError(f"{where} is {message!r}, it needs a 'role' and a 'content'")
    for key in plain:
        if key not in ("role", "content", "name") and plain[key] is not None:
            raise RequestError(f"{where} has the unsupported field {key!r}")
    named = {"name": str(plain["name"])} if plain.get("name") else {}
    return {"role": plain["role"], "content": _content(where, plain.get("content"))} | named


def _content(where: str, content: Any) -> str:
    """Text, or OpenAI's list of parts if all of them are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "".join(_part(where, part) for part in content)
    raise RequestError(f"{where} has the content {content!r}, possible is text")


def _part(where: str, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise RequestError(f"{where} has the content part {part!r}, possible are parts of type 'text'")


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


def _ids(parts: Parts, prompt: str | Sequence[int]) -> Sequence[int]:
    """Token ids of one prompt; control tokens spelled out in a raw prompt are tokens."""
    if not isinstance(prompt, str):
        return prompt
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token of text")
    return parts.tokenizer.encode(prompt, add_special_tokens=True, allow_special=True)


def _stream_options(given: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    rest = dict(given)
    options = rest.pop("stream_options", None) or {}
    if not isinstance(options, Mapping) or not set(options) <= {"include_usage"}:
        raise RequestError(f"stream_options is {options!r}, possible is {{'include_usage': True}}")
    return bool(options.get("include_usage")), rest


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's newer name of max_tokens for chats."""
    rest = dict(given)
    newer = rest.pop("max_completion_tokens", None)
    if newer is not None:
        rest["max_tokens"] = newer
    return rest


def _completion_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Text completions write logprobs=5 where chats write logprobs=True, top_logprobs=5."""
    rest = dict(given)
    wanted = rest.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        rest |= {"logprobs": True, "top_logprobs": wanted}
    return rest
