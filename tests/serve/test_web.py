"""`sterna serve --web`: the page's files and models' folders, with what browsers ask of them."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from running import Running

from sterna.base import web as web_index
from sterna.base.artifact import Model
from sterna.base.errors import ArtifactError, Unavailable, UsageError
from sterna.cli import main as command
from sterna.serve import web
from sterna.serve.options import ServeOptions

WEIGHTS = bytes(range(256)) * 40


def folder(at: Path) -> Path:
    """A model's folder with one file of weights and one program."""
    at.mkdir(parents=True)
    files = {"params_shard_0.bin": WEIGHTS, "p.sterna": b"program", "tokenizer.json": b"{}"}
    for name, data in files.items():
        (at / name).write_bytes(data)
    (at / "secret.txt").write_text("not listed")
    model = Model(
        model_type="llama",
        quantization="q4f16_1",
        fingerprint="",
        vocab_size=8,
        context_window_size=64,
        prefill_chunk_size=16,
        max_batch_size=1,
    )
    memory = web_index.Memory(weights=1, kv_cache=1, arena=1, io=1)
    program = web_index.Program(
        file="p.sterna", target="webgpu", features=(), barriers=False, limits={}, memory=memory
    )
    index = web_index.WebIndex(
        format=web_index.FORMAT,
        sterna="0",
        model=model,
        files=tuple(
            web_index.File(name=n, size=len(d), sha256=hashlib.sha256(d).hexdigest())
            for n, d in files.items()
        ),
        weights=web_index.Weights(tensors=()),
        programs=(program,),
    )
    (at / web_index.INDEX).write_bytes(web_index.encode(index))
    return at


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page and a package as they lie when built."""
    place = tmp_path / "assets"
    (place / "dist" / "vendor").mkdir(parents=True)
    (place / "demo").mkdir()
    (place / "dist" / "index.js").write_text("export {};")
    (place / "dist" / "vendor" / "x.js").write_text("export {};")
    (place / "demo" / "index.html").write_text("<!doctype html>")
    monkeypatch.setattr(web, "_PLACES", (place,))
    return place


@pytest.fixture
def served(built: Path, tmp_path: Path) -> Iterator[Running]:
    options = ServeOptions(port=0, web=(folder(tmp_path / "tern"),))
    running = Running(web.WebApp(options), options)  # type: ignore[arg-type]
    yield running
    running.server.stop()
    running.thread.join(10)


def test_the_page_may_have_threads_and_load_nothing_from_elsewhere(served: Running) -> None:
    for path in ("/", "/index.html", "/sterna/index.js", "/ui/markdown.js", "/models.json"):
        answer = served.ask(path)
        assert answer.status == 200, path
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert served.ask("/").headers["content-type"].startswith("text/html")
    kind = served.ask("/sterna/vendor/x.js").headers["content-type"]
    assert kind.startswith("text/javascript")


def test_models_are_listed_and_handed_out_in_ranges(served: Running) -> None:
    (listed,) = served.ask("/models.json").json
    assert listed["name"] == "tern"
    whole = served.ask("/" + listed["url"] + "params_shard_0.bin")
    assert (whole.status, whole.body) == (200, WEIGHTS)
    assert whole.headers["accept-ranges"] == "bytes"
    part = served.ask("/models/tern/params_shard_0.bin", headers={"range": "bytes=100-"})
    assert (part.status, part.body) == (206, WEIGHTS[100:])
    past = served.ask("/models/tern/params_shard_0.bin", headers={"range": "bytes=99999-"})
    assert past.status == 416


def test_the_pages_files_are_listed_as_they_are_now(served: Running, built: Path) -> None:
    page = served.ask("/page.json").json
    hashes = {file["path"]: file["sha256"] for file in page["files"]}
    assert {"/", "/sterna/vendor/x.js", "/ui/style.css"} <= hashes.keys()
    assert not [path for path in hashes if path.startswith("/models")]
    for path, digest in hashes.items():
        assert hashlib.sha256(served.ask(path).body).hexdigest() == digest
    assert served.ask("/page.json").json == page
    (built / "dist" / "index.js").write_text("export const newer = 1;")
    newer = served.ask("/page.json").json
    assert newer["version"] != page["version"]
    changed = [a["path"] for a, b in zip(newer["files"], page["files"], strict=True) if a != b]
    assert changed == ["/sterna/index.js"]


@pytest.mark.parametrize(
    "path",
    [
        "/models/tern/secret.txt",
        "/models/tern/../tern/secret.txt",
        "/models/tern/%2e%2e/assets/demo/index.html",
        "/sterna/../demo/index.html",
        "/models/other/sterna-web.json",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_handed_out(served: Running, path: str) -> None:
    assert served.ask(path).status == 404


def test_strangers_pages_are_refused_as_by_the_other_server(served: Running) -> None:
    assert served.ask("/", headers={"host": "evil.example"}).status == 403
    asked = {"origin": "https://evil.example"}
    assert served.ask("/models.json", headers=asked).status == 403
    assert served.ask("/", {"a": 1}).status == 405


def test_a_head_has_the_length(served: Running) -> None:
    connection = http.client.HTTPConnection("localhost", served.port, timeout=10)
    connection.request("HEAD", "/models/tern/params_shard_0.bin")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("content-length")) == (200, str(len(WEIGHTS)))
    connection.close()


def test_folders_are_checked_before_they_are_served(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no sterna-web\.json; `sterna compile`"):
        web.WebApp(ServeOptions(web=(tmp_path,)))
    cut = folder(tmp_path / "cut")
    (cut / "params_shard_0.bin").write_bytes(WEIGHTS[:-1])
    with pytest.raises(ArtifactError, match=r"has 10239 bytes, .* lists 10240"):
        web.WebApp(ServeOptions(web=(cut,)))
    twice = folder(tmp_path / "x" / "cut")
    (cut / "params_shard_0.bin").write_bytes(WEIGHTS)
    with pytest.raises(UsageError, match="two folders of --web are called cut"):
        web.WebApp(ServeOptions(web=(cut, twice)))


def test_without_the_built_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PLACES", (tmp_path,))
    with pytest.raises(Unavailable, match="no built package for browsers"):
        web.WebApp(ServeOptions(web=(folder(tmp_path / "tern"),)))


def test_models_and_folders_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["serve", "./model", "--web", "./folder"]) != 0
    assert "leave out the models" in capsys.readouterr().err
    assert command.main(["serve", "--ui", "--web", "./folder"]) != 0
    assert "leave out --ui" in capsys.readouterr().err


def test_indexes_of_another_format_are_refused(built: Path, tmp_path: Path) -> None:
    newer = folder(tmp_path / "newer")
    found = msgspec.json.decode((newer / web_index.INDEX).read_bytes())
    (newer / web_index.INDEX).write_bytes(msgspec.json.encode(found | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        web.WebApp(ServeOptions(web=(newer,)))
