"""The cache in a browser: a second load asks for no weights, and none for a network."""

from __future__ import annotations

from typing import Any

from pages import opened
from serving import FileServer
from web_models import WebModel

LOAD = """async (url) => {
  try {
    const engine = await sterna.CreateEngine(url, { loadText: loadNumbers(1 << 20) });
    const { choices } = await engine.completions.create({
      prompt: [5, 6, 7], max_tokens: 3, temperature: 0, ignore_eos: true,
    });
    await engine.unload();
    return choices[0].text;
  } catch (error) {
    return error.name;
  }
}"""
INDEX = "/tern/sterna-web.json"


def paths(site: FileServer) -> list[str]:
    return [asked.path for asked in site.asked if asked.path.startswith("/tern/")]


def test_a_second_load_needs_no_network(
    page: Any, browser: Any, site: FileServer, tern: WebModel
) -> None:
    site.folders["tern"] = tern.folder
    url = f"{site.url}/tern/"
    first = page.evaluate(LOAD, url)
    assert len(first.split()) == 3
    assert "/tern/params_shard_0.bin" in paths(site)
    again = opened(browser, site)
    site.asked.clear()
    assert again.evaluate(LOAD, url) == first
    assert paths(site) == [INDEX]
    site.faults.down = True
    assert again.evaluate(LOAD, url) == first
    assert again.evaluate("(url) => sterna.hasModelInCache(url)", url) is True
    again.evaluate("(url) => sterna.deleteModelInCache(url)", url)
    assert again.evaluate("() => sterna.listCachedModels()") == []
    assert again.evaluate(LOAD, url) == "Offline"
    again.close()
