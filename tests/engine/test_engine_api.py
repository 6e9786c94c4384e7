"""The engine as its users see it: results, streams, stops, limits, errors, cancellation."""

import asyncio
import gc
import itertools
import json
import threading
import time

import numpy as np
import pytest
from null_model import EOS, VOCAB, ByteTokenizer, LineTemplate, engine, manifest

from sterna.base.errors import DeviceError, RequestError
from sterna.engine.engine import AsyncEngine, Engine
from sterna.engine.options import SamplingOptions
from sterna.engine.prepare import is_light
from sterna.runtime.null import NullExecutable

HELLO = [{"role": "user", "content": "hello"}]


class Parrot(NullExecutable):
    """A null device that writes `text` after every prompt, then ends: logits with one peak."""

    def __init__(self, text: bytes, prompt_length: int) -> None:
        super().__init__(manifest(), 512)
        self._script = [*text, EOS]
        self._prompt_length = prompt_length

    def step(self, batch):
        logits = super().step(batch)
        for row, position in zip(logits, batch.positions[batch.logit_rows]):
            at = int(position) + 1 - self._prompt_length
            row[self._script[min(at, len(self._script) - 1)]] = 100
        return logits


class Held(NullExecutable):
    """Runs `steps` steps at once and every further one only after `release`."""

    def __init__(self, steps: int, error: Exception | None = None) -> None:
        super().__init__(manifest(), 512)
        self.release = threading.Event()
        self._left = itertools.count(steps - 1, -1)
        self._error = error

    def step(self, batch):
        if next(self._left) < 0:
            assert self.release.wait(10), "nobody released the device"
            if self._error is not None:
                raise self._error
        return super().step(batch)


def parrot(text, prompt="go", face=Engine):
    return engine(Parrot(text if isinstance(text, bytes) else text.encode(), len(prompt)), face)


def say(text, **options):
    with parrot(text) as model:
        return model.completions.create(prompt="go", temperature=0, **options).choices[0]


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 5 s"
        time.sleep(0.001)


@pytest.fixture
def model():
    with engine() as running:
        yield running


def test_chat(model):
    result = model.chat.completions.create(messages=HELLO, max_tokens=5, seed=1, ignore_eos=True)
    assert result.object == "chat.completion"
    assert result.model == "null"
    assert result.choices[0].message.role == "assistant"
    assert result.choices[0].finish_reason == "length"
    assert result.usage.completion_tokens == 5
    prompt = len("user: hello\nassistant:")
    assert result.usage.prompt_tokens == prompt
    assert result.usage.total_tokens == prompt + 5
    assert result.timings.time_to_first_token_s > 0
    assert json.loads(result.model_dump_json())["choices"][0]["index"] == 0
    assert result.model_dump()["usage"]["total_tokens"] == prompt + 5
    assert "logprobs" not in result.model_dump(exclude_none=True)["choices"][0]


def test_a_reply_can_be_sent_back(model):
    first = model.chat.completions.create(messages=HELLO, max_tokens=3)
    parts = {"role": "user", "content": [{"type": "text", "text": "and?"}]}
    again = model.chat.completions.create(
        messages=[*HELLO, first.choices[0].message, parts], max_completion_tokens=3
    )
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_chat_stream_equals_the_whole(model):
    options = {"messages": HELLO, "max_tokens": 30, "seed": 5, "n": 2}
    whole = model.chat.completions.create(**options)
    chunks = list(
        model.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage.total_tokens == whole.usage.total_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert len({chunk.id for chunk in chunks}) == 1


def test_completion_stream_equals_the_whole(model):
    options = {"prompt": ["ab", "abc"], "max_tokens": 20, "seed": 5, "return_token_ids": True}
    whole = model.completions.create(**options)
    chunks = list(model.completions.create(**options, stream=True))
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [token for c in mine for token in c.token_ids] == choice.token_ids
        assert choice.prompt_token_ids == list(b"abc"[: choice.index + 2])


def test_token_ids_as_prompt(model):
    options = {"max_tokens": 8, "seed": 5}
    text = model.completions.create(prompt="abc", **options)
    ids = model.completions.create(prompt=list(b"abc"), **options)
    nested = model.completions.create(prompt=[list(b"abc")], **options)
    assert text.choices == ids.choices == nested.choices


def test_without_a_seed_answers_differ(model):
    texts = {model.completions.create(prompt="a", max_tokens=9).choices[0].text for _ in range(4)}
    assert len(texts) > 1


def test_end_token_ends_and_is_not_shown():
    choice = say("hi", return_token_ids=True)
    assert (choice.text, choice.finish_reason) == ("hi", "stop")
    assert choice.token_ids == [*b"hi", EOS]


def test_ignore_eos_and_min_tokens():
    assert say("hi", ignore_eos=True, max_tokens=5).finish_reason == "length"
    choice = say("hi", min_tokens=5, return_token_ids=True, max_tokens=9)
    assert EOS not in choice.token_ids[:5]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("cd", "ab", "stop"),  # across token borders: each byte is a token
        (["zz", "ef", "def"], "abc", "stop"),  # the longer of two that end together
        ("a", "", "stop"),
        ("fg", "abcdef", "stop"),  # a beginning that is never completed comes out at the end
        ("abcdef", "", "stop"),
    ],
)
def test_stop_strings(stop, text, reason):
    choice = say("abcdef", stop=stop)
    assert (choice.text, choice.finish_reason) == (text, reason)


def test_a_held_back_beginning_comes_out_at_the_length_limit():
    choice = say("abcdef", stop="cdx", max_tokens=4)
    assert (choice.text, choice.finish_reason) == ("abcd", "length")


def test_no_half_characters_in_a_stream():
    with parrot("a€😀b") as model:
        chunks = model.completions.create(prompt="go", temperature=0, stream=True)
        assert [c.choices[0].text for c in chunks] == ["a", "€", "😀", "b", ""]
    assert say(b"a\xe2\x82").text == "a\N{REPLACEMENT CHARACTER}"


def test_the_window_ends_an_answer(model):
    result = model.completions.create(prompt="a" * 200, max_tokens=1000, ignore_eos=True)
    assert result.choices[0].finish_reason == "length"
    assert result.usage.total_tokens == 256


def test_logprobs():
    with parrot("hi") as model:
        options = {"temperature": 0, "max_tokens": 2}
        text = model.completions.create(prompt="go", logprobs=2, **options).choices[0].logprobs
        chat = (
            model.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=3, **options)
            .choices[0]
            .logprobs
        )
    assert text.tokens == ["h", "i"]
    assert text.text_offset == [0, 1]
    assert text.token_logprobs == pytest.approx([0, 0], abs=1e-9)
    assert [len(top) for top in text.top_logprobs] == [2, 2]
    assert [len(token.top_logprobs) for token in chat.content] == [3]  # the end comes at once
    assert chat.content[0].bytes == list(chat.content[0].token.encode())
    for token in chat.content:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "unknown or unsupported option 'temprature'; did you mean temperature"),
        ({"functions": []}, "functions is not supported: they were replaced by tools"),
        ({"temperature": -1}, "temperature is -1, possible is a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5, possible is a number from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens is 0, possible is an integer of at least 1"),
        ({"logit_bias": {"999": 1}}, "logit_bias has token id 999, possible are 0 to 256"),
        ({"model": "other"}, "model is 'other', this engine serves 'null'"),
        ({"messages": []}, "messages: expected array of length >= 1"),
        ({"messages": "hello"}, "messages: expected array, got str"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]: object missing required field role"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            r"messages\[0\].content: expected .*, got int",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url"}]}]},
            r"messages\[0\].content\[0\].type: invalid enum value 'image_url'; possible is text$",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            r"messages\[0\].content\[0\].type: .*'input_audio'; possible are text, image_url",
        ),
        (
            {"messages": [{"role": "poet", "content": "x"}]},
            r"messages\[0\].role: invalid value 'poet'; possible are system, .*, tool",
        ),
        ({"store": True}, "store: invalid enum value True; possible is false"),
        ({"tool_choice": "any"}, "'any'; possible are auto, none, required"),
        ({"tool_choice": {"type": "x"}}, "tool_choice.type: .*'x'; possible are function, allowed"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            r"messages\[0\]: object contains unknown field tool_calls",
        ),
        (
            {"stream": True, "stream_options": {"x": 1}},
            "stream_options: object contains unknown field x",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream=True"),
    ],
)
def test_requests_that_cannot_be_served(model, options, message):
    with pytest.raises(RequestError, match=message):
        model.chat.completions.create(**({"messages": HELLO} | options))
    assert model.metrics()["requests"] == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "prompt: expected|prompt is"),
        ([""], "the prompt is empty"),
        ([[]], r"prompt\[0\]: expected array of length >= 1"),
        (["a", 3], "prompt has 3 in it"),
        (7, "prompt: expected .*, got int"),
        ([1, VOCAB], "the prompt has token id 257, possible are 0 to 256"),
        ([-1], "the prompt has token id -1"),
        ("a" * 300, "the prompt has 300 tokens, the context window is 256"),
        ("a" * 256, "the prompt has 256 tokens, the context window is 256"),
    ],
)
def test_prompts_that_cannot_be_served(model, prompt, message):
    with pytest.raises(RequestError, match=message):
        model.completions.create(prompt=prompt)


def test_no_template():
    device = NullExecutable(manifest(), 64)
    with (
        Engine.from_parts(device, ByteTokenizer(), None, "bare") as model,
        pytest.raises(RequestError, match="bare has no chat template"),
    ):
        model.chat.completions.create(messages=HELLO)


def test_defaults_come_from_the_model():
    defaults = SamplingOptions(temperature=0, max_tokens=3)
    device = NullExecutable(manifest(), 64)
    with Engine.from_parts(device, ByteTokenizer(), LineTemplate(), "m", defaults) as model:
        first, second = (model.completions.create(prompt="a", temperature=None) for _ in "ab")
    assert first.choices == second.choices
    assert first.usage.completion_tokens <= 3


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_leaving_a_stream_returns_its_pages_within_one_step(leave):
    device = Held(steps=5)
    with engine(device) as model:
        stream = model.completions.create(
            prompt="a" * 99, max_tokens=150, n=3, stream=True, ignore_eos=True
        )
        next(stream)
        if leave == "close":
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        device.release.set()
        wait_until(lambda: model.metrics()["cancelled"] == 1)
        wait_until(lambda: model.metrics()["pages_free"] == 512)
        assert model.metrics()["steps"] <= 6
        assert model.metrics()["running"] == 0


def test_cancelling_one_leaves_others_alone(model):
    options = {"prompt": "stay", "max_tokens": 60, "seed": 3, "ignore_eos": True}
    alone = model.completions.create(**options).choices
    gone = model.completions.create(prompt="go", max_tokens=200, stream=True, ignore_eos=True)
    kept = model.completions.create(**options, stream=True)
    next(gone)
    gone.close()
    assert "".join(chunk.choices[0].text for chunk in kept) == alone[0].text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DeviceError("the device is gone"), "the engine stopped: the device is gone"),
        (ZeroDivisionError("oh"), "the engine stopped: ZeroDivisionError: oh"),
    ],
)
def test_a_failing_device_reaches_everyone_who_waits_and_all_who_come_later(error, message):
    device = Held(3, error)
    with engine(device) as model:
        streams = [
            model.completions.create(prompt=p, stream=True, max_tokens=99, ignore_eos=True)
            for p in ("a", "b" * 30, "c")
        ]
        device.release.set()
        for stream in streams:
            with pytest.raises(DeviceError, match=message):
                list(stream)
        with pytest.raises(DeviceError, match=message):
            model.completions.create(prompt="later")


class Nan(NullExecutable):
    """Its logits are NaN in the rows of prompts that end with "!"."""

    def step(self, batch):
        logits = super().step(batch)
        logits[batch.tokens[batch.logit_rows] == ord("!")] = np.nan
        return logits


def test_nan_logits_fail_their_own_request_only():
    with engine(Nan(manifest(), 512)) as model:
        good = model.completions.create(
            prompt="a", max_tokens=30, stream=True, logit_bias={33: -100}
        )
        with pytest.raises(DeviceError, match="computed nan among the logits at position 2"):
            model.completions.create(prompt="b!", n=3)
        assert list(good)[-1].choices[0].finish_reason
        assert model.metrics()["failed"] == 1
        wait_until(lambda: model.metrics()["pages_free"] == 512)


def test_closing_ends_open_requests():
    device = Held(steps=5)
    model = engine(device)
    stream = model.completions.create(prompt="a", max_tokens=250, stream=True, ignore_eos=True)
    next(stream)
    threading.Timer(0.05, device.release.set).start()
    model.close()
    model.close()
    with pytest.raises(RequestError, match="the engine was closed"):
        list(stream)
    with pytest.raises(RequestError, match="the engine was closed"):
        model.completions.create(prompt="a")


def test_a_dropped_engine_ends_its_thread():
    model = engine()
    model.completions.create(prompt="a", max_tokens=2)
    thread = model._core._thread
    del model
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_many_threads_share_an_engine(model):
    options = {"max_tokens": 20, "seed": 1}
    prompts = [f"thread {i}" for i in range(12)]
    alone = [model.completions.create(prompt=p, **options).choices for p in prompts]
    found = {}

    def ask(prompt):
        found[prompt] = model.completions.create(prompt=prompt, **options).choices

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [found[prompt] for prompt in prompts] == alone


def test_async_equals_blocking(model):
    options = {"messages": HELLO, "max_tokens": 20, "seed": 2}
    blocking = model.chat.completions.create(**options)

    async def ask():
        async with engine(face=AsyncEngine) as other:
            create = other.chat.completions.create
            whole = await asyncio.gather(*(create(**options) for _ in range(4)))
            stream = await create(**options, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            raw = await other.completions.create(prompt="a", max_tokens=2)
            with pytest.raises(RequestError, match="the prompt is empty"):
                await other.completions.create(prompt="")
            return whole, text, raw

    whole, text, raw = asyncio.run(ask())
    assert all(result.choices == blocking.choices for result in whole)
    assert text == blocking.choices[0].message.content
    assert raw.usage.prompt_tokens == 1


def test_async_cancellation_returns_pages():
    device = Held(steps=5)

    async def ask():
        async with engine(device, AsyncEngine) as model:
            task = asyncio.ensure_future(
                model.completions.create(prompt="a" * 90, max_tokens=160, n=8, ignore_eos=True)
            )
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            device.release.set()
            for _ in range(5000):
                if model.metrics()["cancelled"] and model.metrics()["pages_free"] == 512:
                    return model.metrics()
                await asyncio.sleep(0.001)
            raise AssertionError("pages were not returned")

    assert asyncio.run(ask())["running"] == 0


def test_an_event_loop_that_went_away_harms_nobody():
    async def leave(model):
        stream = await model.completions.create(
            prompt="a", max_tokens=200, stream=True, ignore_eos=True
        )
        await anext(stream)
        return stream

    model = engine(face=AsyncEngine)
    stream = asyncio.run(leave(model))
    wait_until(lambda: model.metrics()["pages_free"] == 512)
    del stream

    async def again():
        return await model.completions.create(prompt="b", max_tokens=2)

    assert asyncio.run(again()).usage.prompt_tokens == 1
    model.close()


def test_what_takes_long_to_prepare_is_not_light():
    message = {"role": "user", "content": "x"}
    assert is_light(([message] * 10, None, {"temperature": 0, "stop": ["a"]}))
    assert is_light(("x" * 4000, {}))
    for heavy in (
        ("x" * 5000, {}),
        ([message] * 5000, None, {}),
        (list(range(5000)), {}),
        ([message], None, {"tools": []}),
        ([message], None, {"response_format": {"type": "json_object"}}),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 5000}]}], None, {}),
    ):
        assert not is_light(heavy)
