"""The page of `sterna serve --web` in a real browser: loads, talks, stops, keeps, and complains."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import WEB
from web_models import WebModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from running import Running

from sterna.serve import web
from sterna.serve.options import ServeOptions
from sterna.serve.web import WebApp

Launch = Callable[..., Any]
WEIGHTS = "**/params_shard_0.bin"
WITHOUT_GPU = ["--no-sandbox", "--disable-quic", "--disable-features=WebGPU"]

IN_WORKER = """async ([url, request]) => {
  const { WebWorkerEngine } = await import("/sterna/worker_engine.js");
  window.worker ??= new WebWorkerEngine(new Worker("/worker.js", { type: "module" }));
  if (url) await window.worker.reload(url);
  return await window.worker.chat.completions.create(request);
}"""


KEPT = """async () => {
  await navigator.serviceWorker.ready;
  while (navigator.serviceWorker.controller === null) await new Promise((r) => setTimeout(r, 20));
}"""
VERSIONS = "caches.keys().then((all) => all.filter((name) => name.startsWith('sterna-page.')))"


@pytest.fixture(scope="module")
def served(dist: Path, tern: WebModel) -> Iterator[Running]:
    options = ServeOptions(port=0, web=(tern.folder,))
    running = Running(WebApp(options), options)  # type: ignore[arg-type]
    yield running
    running.server.stop()
    running.thread.join(10)


@pytest.fixture(scope="module")
def context(launch: Launch) -> Any:
    """A browser that keeps what tests before have loaded."""
    return launch()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What pages say on their consoles; nothing may be left in the end."""
    said: list[str] = []
    yield said
    assert said == []


@pytest.fixture
def page(context: Any, served: Running, complaints: list[str]) -> Iterator[Any]:
    made = watched(context, complaints)
    made.goto(greedy(served))
    yield made
    made.close()


def watched(context: Any, complaints: list[str]) -> Any:
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


def greedy(served: Running) -> str:
    """The page's address where answers do not depend on chance."""
    return f"{served.url}/?temperature=0"


def load(page: Any) -> None:
    page.locator("#load:not([disabled])").click()
    page.locator("#question").wait_for(state="visible")


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def answered(page: Any) -> str:
    """The last answer, once it is complete."""
    page.locator("#send").wait_for(state="visible")
    return str(page.locator("article.assistant .text").last.inner_text())


def barriers(page: Any) -> list[str]:
    """What axe-core finds to keep people out of what is shown now."""
    source = WEB / "node_modules" / "axe-core" / "axe.min.js"
    if not source.is_file():
        pytest.skip("needs axe-core in web/node_modules, which `make test` installs")
    page.evaluate(source.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]


def test_a_model_is_loaded_asked_and_kept_and_starts_without_a_network(
    page: Any, complaints: list[str]
) -> None:
    asked: list[str] = []
    page.locator("#models small", has_text="to fetch").wait_for()
    assert "MB of memory" in page.locator("#models small").inner_text()
    assert "fits on this device" in page.locator("#verdict").inner_text()
    load(page)
    ask(page, "What is 12 + 30?")
    assert "42" in answered(page)
    assert "tokens/s" in page.locator("article.assistant footer").inner_text()
    page.context.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.locator("#load", has_text="Start").wait_for()
    assert "in this browser" in page.locator("#models small").inner_text()
    assert barriers(page) == []
    assert any(url.endswith("sterna-web.json") for url in asked)
    assert not [url for url in asked if url.endswith((".bin", ".sterna", "tokenizer.json"))]
    page.evaluate(KEPT)
    page.context.set_offline(True)
    try:
        page.reload()
        assert page.evaluate("fetch('/models/x').then(() => 'there', () => 'away')") == "away"
        load(page)
        ask(page, "What is 12 + 30?")
        assert "42" in answered(page)
    finally:
        page.context.set_offline(False)
        complaints[:] = [said for said in complaints if "ERR_INTERNET_DISCONNECTED" not in said]


def test_a_newer_page_replaces_the_kept_one_and_another_server_removes_it(
    launch: Launch, dist: Path, tern: WebModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dist").symlink_to(dist)
    shutil.copytree(WEB / "demo", tmp_path / "demo")
    monkeypatch.setattr(web, "_PLACES", (tmp_path,))
    options = ServeOptions(port=0, web=(tern.folder,))
    running = Running(WebApp(options), options)  # type: ignore[arg-type]
    context = launch()
    page = watched(context, [])
    page.goto(running.url)
    page.evaluate(KEPT)
    html = tmp_path / "demo" / "index.html"
    text = html.read_text()
    html.write_text(text.replace("<title>Sterna", "<title>Newer Sterna"))
    page.reload()
    assert page.title().startswith("Newer")
    running.server.stop()
    running.thread.join(10)
    page.reload()
    assert page.title().startswith("Newer")
    assert len(page.evaluate(VERSIONS)) == 1, "what was kept before is still there"
    page.locator("#load:not([disabled])").click()
    assert "There is no network" in problem(page)
    assert "cannot be fetched: the server cannot be reached" in problem(page)
    assert page.locator("#verdict").inner_text().startswith("The server cannot be reached, and ")
    other = replace(options, port=running.port)
    monkeypatch.setattr(web, "_page", lambda own: None)  # a server that has no such list
    running = Running(WebApp(other), other)  # type: ignore[arg-type]
    page.reload()
    assert page.evaluate(VERSIONS) == []
    running.server.stop()
    running.thread.join(10)
    context.close()


def test_without_a_network_a_model_that_is_not_kept_is_out_of_reach(
    fresh: Any, served: Running
) -> None:
    fresh.goto(greedy(served))
    fresh.evaluate(KEPT)
    verdict = fresh.locator("#verdict")
    verdict.filter(has_text=re.compile("^It fits")).wait_for()
    fresh.context.set_offline(True)
    verdict.filter(has_text=re.compile(r"^There is no network, and .* to be fetched\.")).wait_for()
    fresh.reload()
    verdict.filter(has_text=re.compile(r"^There is no network, and .* to be fetched\.")).wait_for()
    assert barriers(fresh) == []
    fresh.context.set_offline(False)
    verdict.filter(has_text=re.compile("^It fits")).wait_for()
    load(fresh)


def test_an_answer_is_stopped_and_the_page_stays_responsive(page: Any) -> None:
    load(page)
    page.evaluate("window.ticks = 0; window.ticking = setInterval(() => window.ticks++, 20)")
    ask(page, "Tell me a story about a fox.")
    page.locator("article.assistant .text", has_text=re.compile(r"\w{3}")).wait_for()
    ticks = page.evaluate("window.ticks")
    page.press("#question", "Escape")
    text = answered(page)
    assert "stopped" in page.locator("article.assistant footer").inner_text()
    assert ticks > 3, "the page stood still"
    assert len(text) < 200
    page.click("#new")
    assert page.locator("article").count() == 0
    ask(page, "What is 12 + 30?")
    assert "42" in answered(page)


def test_the_worker_has_the_engines_face(page: Any, tern: WebModel) -> None:
    url = f"/models/{tern.folder.name}/"
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["sum", "sure"],
    }
    request = {
        "messages": [{"role": "user", "content": "What is 12 + 30?"}],
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    answer = page.evaluate(IN_WORKER, [url, request])
    found = json.loads(answer["choices"][0]["message"]["content"])
    assert isinstance(found["sum"], int)
    assert isinstance(found["sure"], bool)
    wrong = request | {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"not": {}}}}}  # fmt: skip
    told = page.evaluate(
        """async ([run, request]) => {
          const { RequestError, ModelNotLoaded } = await import("/sterna/errors.js");
          const failed = async (task) => { try { await task(); } catch (e) { return e; } };
          const refused = await failed(() => window.worker.chat.completions.create(request));
          const stream = await window.worker.chat.completions.create({
            messages: [{ role: "user", content: "Tell me a story about a fox." }], stream: true,
          });
          let pieces = 0;
          for await (const piece of stream) if (++pieces === 2) break;
          await window.worker.unload();
          const gone = await failed(() => window.worker.chat.completions.create({ messages: [] }));
          const typed = refused instanceof RequestError;
          return [typed, refused.param, pieces, gone instanceof ModelNotLoaded];
        }""",
        [IN_WORKER, wrong],
    )
    assert told == [True, "response_format.json_schema.schema", 2, True]


def test_two_tabs_load_at_once_and_one_is_closed_while_it_writes(
    launch: Launch, served: Running, complaints: list[str]
) -> None:
    fresh = launch()
    pages = [watched(fresh, complaints) for _ in range(3)]
    for page in pages:
        page.goto(greedy(served))
    for page in pages:
        page.locator("#load:not([disabled])").click()
    pages[2].close()
    for page in pages[:2]:
        page.locator("#question").wait_for(state="visible")
    ask(pages[1], "What is 12 + 30?")
    assert "42" in answered(pages[1])
    fresh.close()


@pytest.fixture
def fresh(launch: Launch, served: Running) -> Iterator[Any]:
    """A page in a browser that keeps nothing yet; its complaints are what is tested."""
    context = launch()
    page = watched(context, [])
    yield page
    context.close()


def problem(page: Any) -> str:
    page.locator("#problem").wait_for(state="visible")
    return str(page.locator("#problem").inner_text())


def test_damaged_and_broken_downloads(fresh: Any, served: Running, tern: WebModel) -> None:
    data = bytearray((tern.folder / "params_shard_0.bin").read_bytes())
    data[len(data) // 2] ^= 1
    fresh.context.route(WEIGHTS, lambda route: route.fulfill(body=bytes(data)))
    fresh.goto(greedy(served))
    fresh.locator("#load:not([disabled])").click()
    assert "A file of the model is damaged" in problem(fresh)
    fresh.context.unroute(WEIGHTS)
    fresh.context.route(WEIGHTS, lambda route: route.abort("internetdisconnected"))
    fresh.locator("#load:not([disabled])").click()
    broken = re.compile("could not be fetched|no network")
    fresh.locator("#problem-title", has_text=broken).wait_for()
    fresh.context.unroute(WEIGHTS)
    load(fresh)
    ask(fresh, "What is 12 + 30?")
    assert "42" in answered(fresh)


def test_a_model_is_deleted(fresh: Any, served: Running) -> None:
    fresh.goto(greedy(served))
    load(fresh)
    fresh.click("#leave")
    fresh.locator("#load", has_text="Start").wait_for()
    fresh.click("#forget")
    fresh.locator("#models small", has_text="to fetch").wait_for()
    fresh.locator("#load:not([disabled])", has_text="Load").wait_for()
    assert not fresh.locator("#forget").is_visible()


def test_an_index_of_a_newer_version(fresh: Any, served: Running, tern: WebModel) -> None:
    index = json.loads((tern.folder / "sterna-web.json").read_text())
    newer = json.dumps(index | {"format": 99})
    fresh.context.route("**/sterna-web.json", lambda route: route.fulfill(body=newer))
    fresh.goto(greedy(served))
    fresh.locator("#models small.bad").wait_for()
    assert "newer Sterna" in fresh.locator("#models small").inner_text()
    assert fresh.locator("#load").is_disabled()


def test_no_room(fresh: Any, served: Running) -> None:
    fresh.add_init_script(
        "navigator.storage.estimate = async () => ({ quota: 1000000, usage: 999000 });"
    )
    fresh.goto(greedy(served))
    fresh.locator("#models small.bad").wait_for()
    assert "no room" in fresh.locator("#models small").inner_text()
    assert "delete other models" in fresh.locator("#verdict").inner_text()


def test_without_webgpu(launch: Launch, served: Running) -> None:
    context = launch(flags=WITHOUT_GPU)
    page = watched(context, [])
    page.goto(greedy(served))
    text = problem(page)
    assert "This browser has no WebGPU" in text
    assert "chrome://flags" in text
    assert barriers(page) == []
    assert not page.locator("#chooser").is_visible()
    context.close()


def test_a_phone_a_keyboard_and_a_screen_reader(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#load:not([disabled])").wait_for()
    page.keyboard.press("Tab")
    for _ in range(6):
        if page.evaluate("document.activeElement.id") == "load":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#question").wait_for(state="visible")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("What is 12 + 30?")
    page.keyboard.press("Enter")
    assert "42" in answered(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert barriers(page) == []
    unnamed = """[...document.querySelectorAll("button, input, textarea, progress")].filter(
      (e) => !(e.innerText || e.labels?.length || e.getAttribute("aria-label")
        || e.getAttribute("aria-labelledby"))).map((e) => e.id)"""
    assert page.evaluate(unnamed) == []
