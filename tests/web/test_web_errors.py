"""Each mistake is one typed error with a sentence, and what is kept stays sound after it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import FLAGS, opened
from serving import FileServer
from web_models import WebModel, changed, only

SHARD = "/tern/params_shard_0.bin"
TRY = """async (url) => {
  try {
    const engine = await sterna.CreateEngine(url, { loadText: loadNumbers(1 << 20) });
    const { choices } = await engine.completions.create({
      prompt: [5, 6, 7], max_tokens: 2, temperature: 0, ignore_eos: true,
    });
    await engine.unload();
    return { answer: choices[0].text };
  } catch (error) {
    const typed = error instanceof sterna[error.name] && error instanceof sterna.SternaError;
    return { name: error.name, typed, text: error.message };
  }
}"""
BEGIN = f"(url) => {{ window.trying = ({TRY})(url); }}"
KEPT = "(url) => sterna.hasModelInCache(url)"


def check(told: dict[str, Any], name: str, *words: str) -> None:
    """A sentence that has these words, of that class."""
    assert told.get("name") == name, told
    assert told["typed"]
    for word in words:
        assert word in told["text"], told
    assert 40 < len(told["text"]) < 1000
    assert "\n" not in told["text"]


@pytest.fixture
def tern_site(site: FileServer, tern: WebModel) -> Iterator[str]:
    site.folders["tern"] = tern.folder
    yield f"{site.url}/tern/"
    site.faults = type(site.faults)()


def test_no_adapter(launch: Callable[..., Any], site: FileServer, tern_site: str) -> None:
    context = launch(flags=[flag for flag in FLAGS if "webgpu" not in flag])
    told = opened(context, site).evaluate(TRY, tern_site)
    check(told, "NoWebGPU", "no adapter", "graphics driver")
    context.close()


def newer_program(folder: Path) -> Callable[[dict[str, Any]], object]:
    """Programs whose manifest has a higher format; their hashes are right."""

    def change(index: dict[str, Any]) -> None:
        hashes = {}
        for program in index["programs"]:
            path = folder / program["file"]
            data = re.sub(rb'("format": ?)\d', rb"\g<1>9", path.read_bytes(), count=1)
            path.unlink()
            path.write_bytes(data)
            hashes[program["file"]] = hashlib.sha256(data).hexdigest()
        for file in index["files"]:
            file["sha256"] = hashes.get(file["name"], file["sha256"])

    return change


def too_large(index: dict[str, Any]) -> None:
    for program in index["programs"]:
        program["limits"]["maxBufferSize"] = 2**40


def newer_index(index: dict[str, Any]) -> None:
    index["format"] = 99


def test_models_that_this_browser_or_version_does_not_run(
    page: Any, site: FileServer, tern: WebModel, tmp_path: Path
) -> None:
    changes = [
        (only("webgpu:f16"), "MissingFeature", "shader-f16", "another browser or device"),
        (too_large, "LimitTooSmall", f"maxBufferSize of {2**40}", "smaller model"),
        (newer_index, "NewerFormat", "format 99", "newer @sterna/web"),
        (newer_program(tmp_path / "3"), "NewerFormat", "format 9", "newer @sterna/web"),
    ]
    for i, (change, name, *words) in enumerate(changes):
        site.folders[str(i)] = changed(tern, tmp_path / str(i), change)
        check(page.evaluate(TRY, f"{site.url}/{i}/"), name, *words)
    assert not [asked for asked in site.asked if asked.path.endswith(".bin")]


def test_no_room(page: Any, site: FileServer, tern_site: str) -> None:
    """Told before the download where the browser says so, and in the middle where it does not."""
    page.evaluate("navigator.storage.estimate = async () => ({ quota: 200000, usage: 1000 })")
    check(page.evaluate(TRY, tern_site), "QuotaExceeded", "lets this site store 199000")
    assert not [asked for asked in site.asked if asked.path == SHARD]
    page.evaluate("delete navigator.storage.estimate")  # Chromium's own says 10 GB, whatever is set
    session = page.context.new_cdp_session(page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url, "quotaSize": 400_000})
    check(page.evaluate(TRY, tern_site), "QuotaExceeded", "has no room for", "cache: false")
    assert page.evaluate(KEPT, tern_site) is False
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url})
    assert "answer" in page.evaluate(TRY, tern_site)
    assert page.evaluate(KEPT, tern_site) is True


@pytest.mark.slow
def test_offline_in_mid_download(page: Any, site: FileServer, tern_site: str) -> None:
    site.faults.cut[SHARD] = 100_000
    site.faults.dark = True
    page.evaluate(BEGIN, tern_site)
    while not any(asked.path == SHARD for asked in site.asked):
        page.wait_for_timeout(20)
    page.context.set_offline(True)
    check(page.evaluate("trying"), "Offline", "there is no network", "load again")
    page.context.set_offline(False)
    site.faults.down = site.faults.dark = False
    assert page.evaluate(KEPT, tern_site) is False
    assert "answer" in page.evaluate(TRY, tern_site)


def test_a_wrong_hash(page: Any, site: FileServer, tern_site: str) -> None:
    site.faults.flipped.add(SHARD)
    check(page.evaluate(TRY, tern_site), "IntegrityError", "SHA-256", "copy the model")
    assert page.evaluate(KEPT, tern_site) is False
    site.faults.flipped.clear()
    assert "answer" in page.evaluate(TRY, tern_site)


def test_a_page_closed_in_mid_write(
    page: Any, browser: Any, site: FileServer, tern_site: str
) -> None:
    """A write of weights that never ends: what the closed page leaves is no part of the model."""
    writer = opened(browser, site)
    writer.evaluate("""() => {
      const { write, close } = FileSystemWritableFileStream.prototype;
      let size = 0;
      FileSystemWritableFileStream.prototype.write = function (data) {
        size = data.length;
        return write.call(this, data);
      };
      FileSystemWritableFileStream.prototype.close = function () {
        if (size < 500_000) return close.call(this);
        window.writing = true; // weights
        return new Promise(() => undefined);
      };
    }""")
    writer.evaluate(BEGIN, tern_site)
    writer.wait_for_function("window.writing")
    writer.close()
    assert page.evaluate(KEPT, tern_site) is False
    assert "answer" in page.evaluate(TRY, tern_site)
    assert page.evaluate(KEPT, tern_site) is True


@pytest.mark.slow
def test_two_tabs_load_at_once(page: Any, browser: Any, site: FileServer, tern_site: str) -> None:
    """Each has its engine; the weights are fetched once."""
    other = opened(browser, site)
    for tab in (page, other):
        tab.evaluate(BEGIN, tern_site)
    assert page.evaluate("trying") == other.evaluate("trying")
    assert "answer" in page.evaluate("trying")
    assert len([asked for asked in site.asked if asked.path == SHARD]) == 1
    other.close()
