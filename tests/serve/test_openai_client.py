"""OpenAI's own Python client against the server, as an application would use it."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from running import HELLO, MODEL, Running


@pytest.fixture(scope="module")
def client(null_server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{null_server.url}/v1", api_key="any", max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    given["extra_body"] = {"ignore_eos": True}
    return client.chat.completions.create(**given | fields)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    assert (model.id, model.object) == (MODEL, "model")


def test_an_answer(client: openai.OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=2)
    chunks = list(
        ask(
            client,
            stream=True,
            logprobs=True,
            top_logprobs=2,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    logprobs = [
        t
        for c in chunks
        if c.choices and c.choices[0].logprobs
        for t in c.choices[0].logprobs.content
    ]
    assert logprobs == whole.choices[0].logprobs.content
    assert {len(token.top_logprobs) for token in logprobs} == {2}
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_only_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_several_answers(client: openai.OpenAI) -> None:
    answer = ask(client, n=3, temperature=1, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = ask(client, n=3, temperature=1, seed=4)
    assert [c.message for c in again.choices] == [c.message for c in answer.choices]


def test_completions(client: openai.OpenAI) -> None:
    given: Any = {"model": MODEL, "max_tokens": 4, "temperature": 0}
    several = client.completions.create(prompt=["one", "two"], **given)
    single = [client.completions.create(prompt=p, **given).choices[0].text for p in ("one", "two")]
    assert [choice.text for choice in several.choices] == single
    ids = client.completions.create(prompt=[[111, 110, 101], [116, 119, 111]], **given)
    assert [choice.text for choice in ids.choices] == single
    streamed = client.completions.create(prompt="one", stream=True, **given)
    assert "".join(chunk.choices[0].text for chunk in streamed) == single[0]


def test_echo(client: openai.OpenAI) -> None:
    given: Any = {"model": MODEL, "max_tokens": 4, "temperature": 0, "prompt": "one"}
    plain, echoed = (
        client.completions.create(echo=echo, **given).choices[0].text for echo in (False, True)
    )
    assert echoed == "one" + plain


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        ask(client, model="gpt-nothing")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature=-1)
    assert wrong.value.param == "temperature"
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError, match="embedding"):
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.BadRequestError, match=r"(?s)\b1\d{3}\b.*\b256\b"):
        ask(client, messages=[{"role": "user", "content": "x" * 1000}])


def test_the_async_client(null_server: Running) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{null_server.url}/v1", api_key="any") as client:
            given: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "temperature": 0}
            whole = await client.chat.completions.create(**given)
            text = ""
            async for chunk in await client.chat.completions.create(stream=True, **given):
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content or "", text

    whole, streamed = asyncio.run(both())
    assert whole == streamed
