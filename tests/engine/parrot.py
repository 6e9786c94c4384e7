"""A null model that wants to say a given text, and what it is asked: tools, formats, templates."""

import json

import jsonschema_rs
import numpy as np
from null_model import EOS, engine, manifest

from sterna.runtime.null import NullExecutable
from sterna.text.chat_template import ChatTemplate

PLAIN = """{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"""
SKILLED = """\
{%- if tools %}<tools>{{ tools | tojson }}</s>{% endif %}
{%- for m in messages %}<{{ m.role }}>
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] -%}
{{ '' if loop.first else ' ' }}<call>{"name": "{{ call.function.name }}", "arguments": {{ '' -}}
{{ call.function.arguments | tojson }}}</call>
{%- endfor %}</s>{% endfor %}
{%- if add_generation_prompt %}<assistant>
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{%- endif %}"""
ASK = [{"role": "user", "content": "Rain?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": PERSON, "strict": True},
}
VALID = jsonschema_rs.validator_for(PERSON)


def template(source):
    return ChatTemplate({"default": source}, {})


class Parrot(NullExecutable):
    """Prefers the next byte of `text`, wherever in its answer it is; then the end."""

    def __init__(self, text, after=b"<assistant>", **changes):
        super().__init__(manifest(**{"context_window_size": 1024} | changes), 2048)
        self._script = [*text.encode(), EOS]
        self._after = after
        self._kept = np.zeros((2048, self._page_size), np.int32)

    def copy_page(self, source, destination):
        super().copy_page(source, destination)
        self._kept[destination] = self._kept[source]

    def step(self, batch):
        logits = super().step(batch)
        for s, (start, end) in enumerate(zip(batch.seq_indptr[:-1], batch.seq_indptr[1:])):
            pages = batch.page_table[batch.page_indptr[s] : batch.page_indptr[s + 1]]
            for token, position in zip(batch.tokens[start:end], batch.positions[start:end]):
                page, slot = divmod(int(position), self._page_size)
                self._kept[pages[page], slot] = token
            for r in np.flatnonzero((batch.logit_rows >= start) & (batch.logit_rows < end)):
                count = int(batch.positions[batch.logit_rows[r]]) + 1
                text = bytes(min(t, 255) for t in self._kept[pages].ravel()[:count])
                if self._after not in text:
                    continue  # amid a prompt: nobody looks at this row
                at = count - text.rindex(self._after) - len(self._after)
                logits[r][self._script[min(at, len(self._script) - 1)]] += 100
        return logits


def asked(text, source=SKILLED, face=None, **options):
    """The answer of a model that wants to say `text`, whole and put together from its stream."""
    wanted = {"messages": ASK, "temperature": 0, "max_tokens": 300} | options
    with engine(Parrot(text), template=template(source)) as model:
        whole = model.chat.completions.create(**wanted)
        chunks = list(
            model.chat.completions.create(
                **wanted, stream=True, stream_options={"include_usage": True}
            )
        )
    for choice in whole.choices:
        assert_equal(choice, [c.choices[0] for c in chunks if c.choices
                              and c.choices[0].index == choice.index])  # fmt: skip
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details
    return whole


def assert_equal(choice, pieces):
    """A stream tells what the whole answer says."""
    message = choice.message
    assert "".join(p.delta.content or "" for p in pieces) == (message.content or "")
    thought = "".join(p.delta.reasoning_content or "" for p in pieces)
    assert thought == (message.reasoning_content or "")
    calls = []
    for delta in (call for p in pieces for call in p.delta.tool_calls or ()):
        if delta.id is not None:
            assert delta.index == len(calls)
            assert delta.type == "function"
            calls.append([delta.function.name, ""])
        calls[delta.index][1] += delta.function.arguments or ""
    wanted = [[c.function.name, c.function.arguments] for c in message.tool_calls or ()]
    assert calls == wanted
    assert [p.finish_reason for p in pieces if p.finish_reason] == [choice.finish_reason]


def call(name, arguments):
    return f'<call>{{"name": "{name}", "arguments": {json.dumps(arguments)}}}</call>'


ROME = call("weather", {"city": "Rome", "days": 3})
TIME = call("clock", {})


def calls_of(result, i=0):
    calls = result.choices[i].message.tool_calls or []
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls]
