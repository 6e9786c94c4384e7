"""A chat request to the ids of its prompt, through the model's own template.

In: a checked request and the tools on offer. Out: ids, and where the answer begins with regard to
thoughts. What users wrote never becomes a special token. Knows no sampling options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sterna.base.errors import RequestError
from sterna.engine.api_request import ChatFields
from sterna.engine.messages import Plain, plain_messages
from sterna.engine.offer import Offer, plain_tools
from sterna.engine.parts import Parts
from sterna.engine.reasoning import Start, start_of
from sterna.text import conv_template

# The template's own; whoever set them would set something else than it seems.
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def chat_prompt(parts: Parts, request: ChatFields, offer: Offer | None) -> tuple[list[int], Start]:
    """Render the conversation; RequestError where the model's template cannot say it."""
    shown = () if offer is None else offer.shown
    messages = plain_messages(request.messages, shown, parts.dialect)
    if parts.template is not None:
        tools = plain_tools(shown) if shown and parts.dialect.tools.native else None
        return _rendered(parts, messages, tools, _extra(parts, request))
    if parts.conv_template is None:
        raise RequestError(
            f"{parts.model_name} has no chat template; use completions.create with a prompt"
        )
    _extra(parts, request)  # there are no variables to set
    (messages,), mark = parts.marker.mark([messages])
    prefix, text = conv_template.render(parts.conv_template, messages)
    return [*prefix, *_encoded(parts, text, mark)], Start.SPEECH


def _rendered(
    parts: Parts, messages: list[Plain], tools: list[Plain] | None, extra: dict[str, Any]
) -> tuple[list[int], Start]:
    assert parts.template is not None, "rendering without a template"
    (messages, tools, extra), mark = parts.marker.mark([messages, tools, extra])
    text = parts.template.render(messages, tools=tools, **extra)
    return _encoded(parts, text, mark), start_of(text, parts.dialect.thinks)


def _encoded(parts: Parts, text: str, mark: str | None) -> list[int]:
    if mark is not None:
        return parts.tokenizer.encode_marked(text, mark)
    return parts.tokenizer.encode(text, add_special_tokens=False, allow_special=True)


def _extra(parts: Parts, request: ChatFields) -> dict[str, Any]:
    """Variables for the template: those the caller names, and what reasoning_effort means."""
    known = frozenset[str]() if parts.template is None else parts.template.variables - _RESERVED
    extra = dict(request.chat_template_kwargs or {})
    for name in extra:
        if name not in known:
            raise RequestError(
                f"chat_template_kwargs has {name!r:.80}, which the model's chat template does not "
                f"read; it reads {_listed(sorted(known))}",
                "chat_template_kwargs",
            )
    return _effort(parts, request.reasoning_effort, known) | extra


def _effort(parts: Parts, effort: str | None, known: frozenset[str]) -> dict[str, Any]:
    if effort is None or (effort == "none" and not parts.dialect.thinks):
        return {}
    meant = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    understood = {name: value for name, value in meant.items() if name in known}
    if not understood:
        raise RequestError(
            f"reasoning_effort is {effort!r}, but the model's chat template has no switch for "
            "thinking",
            "reasoning_effort",
        )
    return understood


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"
