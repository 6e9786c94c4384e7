"""The engine under load: a thousand requests, cancelled anywhere, and what it says of itself."""

import asyncio
import json
import random
import time

import pytest
from null_model import engine

from sterna.base.errors import RequestError, UsageError
from sterna.engine.engine import AsyncEngine
from sterna.engine.generation import Ask
from sterna.engine.options import SamplingOptions
from sterna.engine.prefix import Divergence

ASKED = {"temperature": 0, "ignore_eos": True}
VOCAB_END = 257


async def outcome(model, index, chance):
    """Ask for one answer; leave it at a random moment, or not at all."""
    prompt = f"{'shared beginning ' * chance.randrange(3)}{index} " + "x" * chance.randrange(40)
    options = {
        "prompt": prompt,
        "max_tokens": chance.randrange(1, 40),
        "n": chance.choice([1, 1, 3]),
    }
    patience, whole = chance.choice([0, 1, 5, 1000]), chance.random() < 0.5
    if chance.random() < 0.02:
        with pytest.raises(RequestError):
            await model.completions.create(prompt=[VOCAB_END], max_tokens=1)
        return "error"
    await asyncio.sleep(chance.random() * 0.3)
    if whole:
        task = asyncio.ensure_future(model.completions.create(**options, **ASKED))
        done, _ = await asyncio.wait([task], timeout=None if patience == 1000 else patience / 100)
        if not done:
            task.cancel()
            return "cancelled"
        return "complete" if task.result().usage.completion_tokens else "empty"
    stream = await model.completions.create(**options, **ASKED, stream=True)
    async with stream:
        async for _ in stream:
            patience -= 1
            if patience < 0:
                return "cancelled"
    return "complete"


@pytest.mark.parametrize("speculative", ["off", "ngram"])
def test_a_thousand_requests_with_random_cancels_leave_nothing_behind(speculative):
    async def run():
        chance = random.Random(7)
        options = {"max_batch_size": 32, "num_pages": 300, "speculative": speculative}
        async with engine(face=AsyncEngine, prefill_chunk_size=128, **options) as model:
            many = (outcome(model, i, random.Random(chance.random())) for i in range(1000))
            found = await asyncio.gather(*many)
            for _ in range(2000):
                metrics = model.metrics()
                if metrics["running"] == metrics["waiting"] == 0:
                    break
                await asyncio.sleep(0.005)
            model._core.call(model._core.scheduler.check)
            assert not model._core.call(lambda: model._core._answers)
            after = await model.completions.create(prompt="after", max_tokens=3, **ASKED)
            return found, model.metrics(), after

    found, metrics, after = asyncio.run(run())
    assert set(found) == {"complete", "cancelled", "error"}
    assert min(found.count(kind) for kind in set(found)) > 5
    assert metrics["pages_free"] == metrics["pages_total"] == 300
    assert metrics["running"] == metrics["waiting"] == 0
    assert metrics["finished"] + metrics["cancelled"] == metrics["requests"]
    assert metrics["failed"] == 0
    assert after.usage.completion_tokens == 3


def test_a_cancelled_request_gives_its_place_to_one_that_waits():
    async def run():
        async with engine(face=AsyncEngine, max_num_sequence=1) as model:
            first = await model.completions.create(
                prompt="first", max_tokens=200, stream=True, **ASKED
            )
            await anext(first)
            second = asyncio.ensure_future(
                model.completions.create(prompt="second", max_tokens=2, **ASKED)
            )
            await asyncio.sleep(0)
            await first.aclose()
            return await asyncio.wait_for(second, 5)

    assert asyncio.run(run()).usage.completion_tokens == 2


def test_answers_under_load_are_those_given_alone():
    options = {"max_tokens": 12, "seed": 5, "return_token_ids": True, "ignore_eos": True}
    prompts = [f"{'the tern ' * (i % 4)}flies {i}" for i in range(120)]
    with engine(max_num_sequence=1, prefix_cache=False) as model:
        alone = [
            model.completions.create(prompt=p, **options).choices[0].token_ids for p in prompts
        ]

    async def run():
        async with engine(face=AsyncEngine, num_pages=70, max_batch_size=16) as model:
            asked = (model.completions.create(prompt=p, **options) for p in prompts)
            return [r.choices[0].token_ids for r in await asyncio.gather(*asked)], model.metrics()

    together, metrics = asyncio.run(run())
    assert together == alone
    assert metrics["preemptions"] > 0
    assert metrics["prefix_hits"] > 0


def test_metrics_and_histograms():
    with engine() as model:
        for _ in range(3):
            model.completions.create(prompt="twelve chars", max_tokens=5, n=2, **ASKED)
        metrics, seen = model.metrics(), model.histograms()
    assert (metrics["requests"], metrics["finished"]) == (3, 3)
    assert metrics["completion_tokens"] == 30
    # The second answer of a request reuses the first one's prompt, and later requests both.
    assert metrics["prefix_queries"] == 6 * 12
    assert metrics["prefix_hits"] == 5 * 11
    assert metrics["prompt_tokens"] == metrics["prefix_queries"] - metrics["prefix_hits"]
    assert seen["time_to_first_token_seconds"].count == 3
    assert seen["prompt_tokens"].count == seen["request_seconds"].count == 3
    assert seen["prompt_tokens"].total == 36
    assert seen["cached_tokens"].total == 22
    assert seen["inter_token_seconds"].count == 30 - 6  # from token to token of each answer
    assert seen["step_tokens"].total == metrics["prompt_tokens"] + 30 - 6
    assert seen["step_tokens"].count == metrics["steps"]
    for histogram in seen.values():
        assert len(histogram.counts) == len(histogram.bounds) + 1
        assert histogram.count > 0


def test_a_trace_of_steps():
    with engine() as model:
        with pytest.raises(RequestError, match="no trace is on"):
            model.stop_trace()
        model.completions.create(prompt="before", max_tokens=3, **ASKED)
        model.start_trace()
        model.completions.create(prompt="twelve chars", max_tokens=5, **ASKED)
        events = json.loads(model.stop_trace())["traceEvents"]
        with pytest.raises(RequestError, match="no trace is on"):
            model.stop_trace()
    steps = [event for event in events if event["name"] == "step"]
    assert [step["args"]["tokens"] for step in steps] == [12, 1, 1, 1, 1]
    assert steps[0]["args"]["prefill_tokens"] == 12
    for step in steps:
        inside = [
            event
            for event in events
            if event["ph"] == "X"
            and step["ts"]
            <= event["ts"]
            <= event["ts"] + event["dur"]
            <= step["ts"] + step["dur"] + 1
        ]
        assert {event["name"] for event in inside} >= {"device", "sample", "hand over"}
    assert any(event["ph"] == "C" and event["name"] == "pages" for event in events)


def test_a_trace_of_the_whole_run_is_a_file(tmp_path):
    file = tmp_path / "steps.json"
    file.write_text("an older trace")
    with engine(trace=str(file)) as model:
        model.completions.create(prompt="twelve chars", max_tokens=5, **ASKED)
        assert file.read_text() == "an older trace"
    events = json.loads(file.read_bytes())["traceEvents"]
    steps = [event for event in events if event["name"] == "step"]
    assert [step["args"]["tokens"] for step in steps] == [12, 1, 1, 1, 1]
    with pytest.raises(UsageError, match=r"cannot write a trace to .*none.*: No such file"):
        engine(trace=str(tmp_path / "none" / "steps.json"))


def test_explain_says_where_a_prompt_left_the_cache():
    with engine() as model:
        model.completions.create(prompt="the tern flies north", max_tokens=1, **ASKED)
        found = model.explain_prefix("the tern flies south")
        assert found == Divergence(15, tuple(b"sout"), tuple(b"n"))
        assert model.explain_prefix(list(b"another")).cached == 0
        assert model.explain_prefix(messages=[{"role": "user", "content": "x"}]).cached == 0
        with pytest.raises(RequestError, match="token id 999"):
            model.explain_prefix([999])


def test_a_command_to_a_closed_engine_is_an_error():
    model = engine()
    model.close()
    with pytest.raises(RequestError, match="the engine was closed"):
        model.start_trace()


def test_a_listener_that_fails_fails_alone():
    with engine() as model:

        def broken(events):
            raise ZeroDivisionError

        model._core.submit(Ask((1, 2), SamplingOptions(max_tokens=50), 0), broken)
        assert model.completions.create(prompt="a", max_tokens=9, **ASKED).choices
        deadline = time.monotonic() + 5
        while model.metrics()["failed"] == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert model.metrics()["failed"] == 1
        assert model.metrics()["pages_free"] == 512
