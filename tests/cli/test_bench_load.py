"""A server under load: every request is accounted for, and what a server does wrong is told."""

import asyncio
import itertools
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from running import start
from scripted_model import scripted

from sterna.base.errors import Unavailable
from sterna.cli import bench_report
from sterna.cli.bench_client import server
from sterna.cli.bench_load import LoadOptions, load, metrics, quantiles
from sterna.cli.main import main
from sterna.engine.engine import AsyncEngine

ANSWER = "four"


@pytest.fixture(scope="module")
def running():
    """Our own server, over a scripted model."""
    engine = scripted(ANSWER, window=1024, face=AsyncEngine)
    made = start({"scripted": engine}, api_keys=("sesame",))
    yield made
    made.stop()


def run(url, key="sesame", **options):
    told = []
    chosen = LoadOptions(**{"requests": 12, "concurrency": 3, "prompt_words": 4, **options})
    found = asyncio.run(load(server(url, key), chosen, lambda *count: told.append(count)))
    assert told == [(i + 1, chosen.requests) for i in range(chosen.requests)]
    return found


def value(found, name):
    return next(metric.value for metric in metrics(found) if metric.name == name)


def test_every_request_is_answered_and_timed(running):
    before = running.engine.metrics()["requests"]
    found = run(running.url)
    assert running.engine.metrics()["requests"] == before + 13  # one warmed up
    assert found.model == "scripted"
    assert found.failures == {}
    assert all(sample.output_tokens == 5 for sample in found.samples)  # four letters, the end
    assert all(
        sample.begun < sample.pieces[0] <= sample.pieces[-1] <= sample.ended
        for sample in found.samples
    )
    assert value(found, "requests") == pytest.approx(12 / found.seconds)
    assert value(found, "output") == pytest.approx(60 / found.seconds)
    assert value(found, "failed") == 0
    times = quantiles(found)
    assert times.keys() == {"first token", "a token", "between pieces", "whole answer"}
    for values in times.values():
        assert len(values) == 101
        assert list(values) == sorted(values)
    assert times["first token"][50] <= times["whole answer"][50]


def test_a_rate_is_kept(running):
    found = run(running.url, rate=40.0, requests=20, concurrency=20)
    moments = sorted(sample.begun for sample in found.samples)
    assert 0.1 < moments[-1] - moments[0] < 5  # 19 gaps of 25 ms on average; never all at once
    gaps = {round(b - a, 6) for a, b in itertools.pairwise(moments)}
    assert len(gaps) > 10  # at random


def test_waiting_for_a_free_connection_counts(running):
    """One at a time at a rate that is too much: later requests wait longer, and it shows."""
    found = run(running.url, rate=1e6, requests=12, concurrency=1)
    delays = [sample.pieces[0] - sample.begun for sample in found.samples]
    assert delays == sorted(delays)


def test_a_wrong_key_is_told(running):
    with pytest.raises(Unavailable, match="lists no models: status 401: the API key is wrong"):
        run(running.url, key="other")


def test_a_wrong_model_is_told(running):
    with pytest.raises(Unavailable, match="does not answer: status 404"):
        run(running.url, model="other")


def test_nobody_there():
    with pytest.raises(Unavailable, match="cannot be reached"):
        run("http://localhost:9")


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_clients_write_it(suffix, running):
    assert run(running.url + suffix, requests=1).failures == {}


def chunk(text):
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def events(*data):
    return "".join(f"data: {d if isinstance(d, str) else json.dumps(d)}\n\n" for d in data).encode()


GOOD = events(chunk("a"), chunk("b"), USAGE, "[DONE]")


class Stranger:
    """Some other server: it answers the nth request for an answer with `replies[n]`, then well.

    HTTP/1.0, so it closes the connection after each.
    """

    def __init__(self, *replies, models=b'{"data": [{"id": "m"}]}'):
        left = [(200, GOOD), *replies]
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, models)

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    status, body = left.pop(0) if left else (200, GOOD)
                self.reply(status, body)

            def reply(self, status, body):
                if status is None:
                    self.wfile.write(body)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.url = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((503, b'{"error": {"message": "busy"}}'), "status 503: busy"),
        ((500, b"<html>"), "status 500"),
        ((500, b'{"error": "no"}'), "status 500"),
        ((200, events(chunk("a"))), "the answer broke off"),
        ((200, events("{")), "an answer that is none of OpenAI's"),
        ((200, events("[]")), "an answer that is none of OpenAI's"),
        ((200, events({"choices": [None]})), "an answer that is none of OpenAI's"),
        ((200, events({"usage": {"prompt_tokens": 1}})), "an answer that is none of OpenAI's"),
        ((200, events({"error": {"message": "worn out"}})), "worn out"),
        ((None, b""), "the server closed the connection"),
        ((None, b"nonsense\r\n\r\n"), "illegal status line"),
        ((None, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), "illegal chunk"),
        ((None, b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nx"), "without sending complete"),
    ],
)
def test_what_a_server_does_wrong_is_told_and_the_rest_goes_on(reply, why):
    with Stranger(reply) as stranger:
        found = run(stranger.url, requests=4, concurrency=2)
    assert sum(found.failures.values()) == 1
    assert why in next(iter(found.failures))
    assert value(found, "failed") == 1
    assert sum(sample.error is None for sample in found.samples) == 3


@pytest.mark.parametrize("models", [b"", b"[]", b'{"data": []}', b'{"data": [{}]}', b"\xff"])
def test_models_that_are_none(models):
    with Stranger(models=models) as stranger:
        with pytest.raises(Unavailable, match="name one with --served-model"):
            run(stranger.url)
        assert run(stranger.url, model="m", requests=2).failures == {}


def test_an_answer_that_does_not_come():
    with socket.create_server(("localhost", 0)) as silent:
        url = f"http://localhost:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
            run(url, model="m", timeout_s=0.1)


def test_the_command(running, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    now, page = tmp_path / "now.json", tmp_path / "page.html"
    flags = ["--requests", "6", "--concurrency", "2", "--prompt-tokens", "4", "--ignore-eos",
             "--generate-tokens", "7"]  # fmt: skip
    assert main(["bench", running.url, *flags, "--json", str(now), "--html", str(page)]) == 0
    captured = capsys.readouterr()
    assert "requests/s" in captured.out
    assert "first token" in captured.out
    assert "sesame" not in captured.out + now.read_text() + page.read_text()
    found = bench_report.read(now)
    assert found.settings["answer_tokens"] == 7
    assert found.settings["model"] == "scripted"
    lax = ["--tolerance", "1e9"]
    assert main(["bench", running.url, *flags, "--baseline", str(now), *lax]) == 0


def test_failures_fail_the_command(capsys):
    with Stranger((503, b'{"error": {"message": "busy"}}')) as stranger:
        assert main(["bench", stranger.url, "--requests", "3"]) == 1
    captured = capsys.readouterr()
    assert "1 requests failed: status 503: busy" in captured.err
    assert "Failures" in captured.out


def test_the_last_failure_of_all_is_told(capsys):
    """Where every request fails there is nothing to draw, and that is said."""
    replies = [(503, b'{"error": {"message": "busy"}}')] * 3
    with Stranger(*replies) as stranger:
        assert main(["bench", stranger.url, "--requests", "3"]) == 1
    assert "3 requests failed" in capsys.readouterr().err
