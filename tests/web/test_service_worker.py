"""Two tabs, one engine in the service worker: shared, fair, taken up again when it was ended."""

from __future__ import annotations

from typing import Any

import pytest
from pages import opened
from serving import FileServer
from web_models import WebModel

LOAD = """async (url) => {
  await navigator.serviceWorker.register("/page/sw.js", { type: "module" });
  window.engine = await sterna.CreateServiceWorkerEngine(url);
}"""
ASK = """async (more) => {
  const request = { messages: [{ role: "user", content: "What is 12 + 30?" }], temperature: 0 };
  try {
    const { choices, usage } = await engine.chat.completions.create({ ...request, ...more });
    return { text: choices[0].message.content, cached: usage.prompt_tokens_details.cached_tokens };
  } catch (error) {
    const typed = error instanceof sterna[error.name] && error instanceof sterna.SternaError;
    return { error: error.name, typed };
  }
}"""
STREAM = """async () => {
  window.told = { pieces: 0, reason: null };
  const stream = await engine.completions.create({
    prompt: "Once", max_tokens: 16, temperature: 0, ignore_eos: true, stream: true,
  });
  (async () => {
    for await (const { choices } of stream) {
      told.pieces++;
      told.reason = choices[0].finish_reason ?? told.reason;
    }
  })();
}"""


@pytest.mark.slow
def test_two_tabs_share_an_engine(
    page: Any, browser: Any, site: FileServer, tern: WebModel
) -> None:
    site.folders["tern"] = tern.folder
    url = f"{site.url}/tern/"
    page.evaluate(LOAD, url)
    assert "42" in page.evaluate(ASK, {})["text"]
    other = opened(browser, site)
    site.asked.clear()
    other.evaluate(LOAD, url)
    assert not [asked for asked in site.asked if asked.path.startswith("/tern/")]
    again = other.evaluate(ASK, {})
    assert "42" in again["text"]
    assert again["cached"] > 0, "another engine answered"
    assert other.evaluate(ASK, {"response_format": {"type": "json_object"}})["text"][0] == "{"
    assert other.evaluate(ASK, {"top_p": 7}) == {"error": "RequestError", "typed": True}

    # one tab does not stop the other's answer, and waits for it
    page.evaluate(STREAM)
    page.wait_for_function("told.pieces > 0")
    other.evaluate("engine.interruptGenerate()")
    assert "42" in other.evaluate(ASK, {})["text"]
    assert page.evaluate("told") == {"pieces": 16, "reason": "length"}

    # nor keeps it waiting when it is closed in mid-answer
    page.evaluate(STREAM)
    page.wait_for_function("told.pieces > 0")
    page.close()
    assert "42" in other.evaluate(ASK, {})["text"]

    # the browser ends service workers as it likes
    session = browser.new_cdp_session(other)
    session.send("ServiceWorker.enable")
    session.send("ServiceWorker.stopAllWorkers")
    assert other.evaluate(ASK, {}) == {"error": "Interrupted", "typed": True}
    assert "42" in other.evaluate(ASK, {})["text"]
    other.close()
