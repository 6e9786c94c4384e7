"""The engine in a page: what is computed anew, what is read back, and a device that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pages import opened
from serving import FileServer
from web_models import WebModel

PREPARE = """async (url) => {
  const { requestDevice } = GPUAdapter.prototype;
  const { submit } = GPUQueue.prototype;
  const { mapAsync } = GPUBuffer.prototype;
  const { dispatchWorkgroups } = GPUComputePassEncoder.prototype;
  Object.assign(window, { devices: [], broken: false, maps: [], launches: 0, submits: [] });
  Object.assign(window, { time: 0, launch_ms: 0 });
  performance.now = () => time;
  GPUAdapter.prototype.requestDevice = async function (...given) {
    const device = await requestDevice.apply(this, given);
    devices.push(device);
    if (broken) device.destroy();
    return device;
  };
  GPUQueue.prototype.submit = function (...given) {
    submits.push(launches);
    time += launch_ms * launches;
    launches = 0;
    return submit.apply(this, given);
  };
  GPUComputePassEncoder.prototype.dispatchWorkgroups = function (...given) {
    launches++;
    return dispatchWorkgroups.apply(this, given);
  };
  GPUBuffer.prototype.mapAsync = function (mode, offset = 0, size = this.size - offset) {
    maps.push(size);
    return mapAsync.call(this, mode, offset, size);
  };
  window.engine = await sterna.CreateEngine(url);
  const met = { prompt: "It is met in small steps", max_tokens: 2, temperature: 1 };
  await engine.completions.create(met);
  const { sampler, model } = engine.loaded.runner.manifest;
  return { sampler: sampler !== null, vocabulary: model.vocab_size };
}"""
ASK = """async (messages) => {
  const { choices, usage } = await engine.chat.completions.create({ messages, temperature: 0 });
  const { prompt_tokens, prompt_tokens_details, completion_tokens } = usage;
  const prefilled = prompt_tokens - prompt_tokens_details.cached_tokens;
  return { content: choices[0].message.content, prefilled, prompt_tokens, completion_tokens };
}"""
STREAM = """async ([count, at, act, temperature = 0]) => {
  const told = { text: "", pieces: 0, reason: null, error: null };
  Object.assign(window, { submits: [], maps: [] });
  try {
    const stream = await engine.completions.create({
      prompt: "Once upon a time", max_tokens: count, temperature, seed: 5, ignore_eos: true,
      stream: true,
    });
    for await (const { choices: [choice] } of stream) {
      told.text += choice.text;
      told.reason = choice.finish_reason;
      if (++told.pieces === at) eval(act);
    }
  } catch (error) {
    told.error = error instanceof sterna.DeviceLost ? "DeviceLost" : String(error);
  }
  return { ...told, submits, maps };
}"""
LOSE = "devices.at(-1).destroy()"
COUNT = 16


@pytest.fixture(scope="module")
def page(browser: Any, site: FileServer, tern: WebModel) -> Iterator[Any]:
    """A page with the demo model, which counts what the device is asked for.

    Its clock stands still, or goes on by `launch_ms` a launch.
    """
    site.forget()
    site.folders["tern"] = tern.folder
    made = opened(browser, site)
    made.program = made.evaluate(PREPARE, f"{site.url}/tern/")
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(page: Any) -> Any:
    """An answer that nothing disturbs."""
    return page.evaluate(STREAM, [COUNT, 0, ""])


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_token_is_one_read_back(page: Any, plain: Any, temperature: float) -> None:
    """It is a few bytes, drawn or not, and all of the token is one submission."""
    assert page.program["sampler"]
    told = page.evaluate(STREAM, [COUNT, 0, "", temperature]) if temperature else plain
    assert told["reason"] == "length"
    assert len(told["submits"]) == told["pieces"] == COUNT
    assert told["maps"] == [4] * COUNT


def test_no_submission_holds_a_slow_device_for_long(page: Any, plain: Any) -> None:
    """Steps are cut where that would take more than 50 ms; the answer is the same."""
    page.evaluate("launch_ms = 5")
    told = page.evaluate(STREAM, [COUNT, 0, ""])
    page.evaluate("launch_ms = 0")
    assert told["text"] == plain["text"]
    assert told["maps"] == [4] * COUNT
    assert sum(told["submits"]) == sum(plain["submits"])
    settled = told["submits"][-COUNT:]  # once the device is known
    assert 5 <= max(settled) <= 10, str(told["submits"])


def test_a_turn_more_computes_what_is_new(page: Any) -> None:
    talk = [{"role": "user", "content": "What is 12 + 30?"}]
    page.evaluate("engine.resetChat()")
    first = page.evaluate(ASK, talk)
    assert "42" in first["content"]
    assert first["prefilled"] == first["prompt_tokens"]
    more = {"role": "user", "content": "Thank you."}
    talk += [{"role": "assistant", "content": first["content"]}, more]
    second = page.evaluate(ASK, talk)
    seen = first["prompt_tokens"] + first["completion_tokens"]
    assert second["prefilled"] <= second["prompt_tokens"] - seen + 1
    assert second["prefilled"] < first["prompt_tokens"]


def test_an_interrupt_stops_within_two_tokens(page: Any, plain: Any) -> None:
    told = page.evaluate(STREAM, [COUNT, 3, "engine.interruptGenerate()"])
    assert told["reason"] == "abort"
    assert 3 <= told["pieces"] <= 5
    assert plain["text"].startswith(told["text"])


def test_a_device_lost_in_mid_answer_is_had_again(page: Any, site: FileServer, plain: Any) -> None:
    site.asked.clear()
    told = page.evaluate(STREAM, [COUNT, 3, LOSE])
    assert (told["text"], told["error"]) == (plain["text"], None)
    assert page.evaluate("devices.length") == 2
    assert [asked for asked in site.asked if asked.path.startswith("/tern/")] == []


def test_a_device_that_stays_lost_is_reported_and_the_next_load_works(
    page: Any, site: FileServer, plain: Any
) -> None:
    told = page.evaluate(STREAM, [COUNT, 3, f"broken = true; {LOSE}"])
    assert told["error"] == "DeviceLost"
    assert plain["text"].startswith(told["text"])
    page.evaluate("broken = false")
    again = page.evaluate(STREAM, [COUNT, 0, ""])
    assert (again["text"], again["error"]) == (plain["text"], None)
