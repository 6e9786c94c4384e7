"""Models, health, metrics and version; several models; the chat page's files."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from running import Running, null, scripted, until

from sterna.base.errors import Unavailable
from sterna.base.version import __version__
from sterna.engine.engine import AsyncEngine
from sterna.engine.metrics import Histogram
from sterna.serve import page
from sterna.serve.metrics import histogram_lines
from sterna.serve.server import bind

Start = Callable[..., Running]
SAMPLE = re.compile(r'[a-zA-Z_:][\w:]*(\{(\w+="[^"\n]*",?)*\})? -?[\d.e+-]+(inf|nan)?')


def values(text: str) -> dict[str, float]:
    """Samples of a page by name and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_version_and_health(null_server: Running) -> None:
    assert null_server.ask("/version").json == {"version": __version__}
    for path in ("/health", "/health/live", "/health/ready"):
        assert null_server.ask(path).json == {"status": "ok", "message": None}


def test_a_server_that_stops_is_alive_and_not_ready(null_server: Running) -> None:
    null_server.app.state.draining = True
    try:
        assert null_server.ask("/health/ready").status == 503
        assert null_server.ask("/health/live").status == 200
    finally:
        null_server.app.state.draining = False


def test_every_answer_has_an_id(null_server: Running) -> None:
    ids = {null_server.ask("/version").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert null_server.chat(temperature=-1).headers["x-request-id"]


def test_metrics_count(serving: Start) -> None:
    server = serving()
    before = values(server.ask("/metrics").body.decode())
    for stream in (False, True):
        assert server.chat(stream=stream, max_tokens=5).status == 200
    assert server.chat(temperature=-1).status == 400
    page = server.ask("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = values(page.body.decode())
    labels = '{model_name="null",engine="0"}'
    assert after[f"vllm:generation_tokens_total{labels}"] == 10
    assert after[f"vllm:e2e_request_latency_seconds_count{labels}"] == 2
    assert after[f"vllm:time_to_first_token_seconds_count{labels}"] == 2
    assert after[f"vllm:request_generation_tokens_sum{labels}"] == 10
    assert after[f"vllm:prefix_cache_hits_total{labels}"] > 0
    assert after[f"vllm:num_requests_running{labels}"] == 0
    ended = 'vllm:request_success_total{model_name="null",engine="0",finished_reason="length"}'
    assert after[ended] == 2
    assert ended not in before
    path = 'sterna_http_requests_total{path="/v1/chat/completions",status="%d"}'
    assert (after[path % 200], after[path % 400]) == (2, 1)


def test_metrics_are_prometheus_text(null_server: Running) -> None:
    lines = null_server.ask("/metrics").body.decode().splitlines()
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    for line in lines:
        assert line.startswith("# ") or SAMPLE.fullmatch(line), line
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & typed, line


def test_a_client_that_left_is_counted(serving: Start) -> None:
    from test_disconnects import send

    server = serving()
    send(server, max_tokens=200, ignore_eos=True).close()
    path = 'sterna_http_requests_total{path="/v1/chat/completions",status="499"} 1'
    assert until(lambda: path in server.ask("/metrics").body.decode())


def test_a_histogram_counts_upwards() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    lines = list(histogram_lines("h", 'm="x"', histogram))
    assert lines == [
        'h_bucket{m="x",le="1.0"} 2',
        'h_bucket{m="x",le="2.0"} 3',
        'h_bucket{m="x",le="+Inf"} 4',
        'h_sum{m="x"} 12.0',
        'h_count{m="x"} 4',
    ]


def test_several_models_by_name(serving: Start) -> None:
    server = serving({"plain": null(), "org/talker": scripted()})
    listed = server.ask("/v1/models").json["data"]
    assert [card["id"] for card in listed] == ["plain", "org/talker"]
    assert server.ask("/v1/models/org/talker").json["id"] == "org/talker"
    answer = server.chat(model="org/talker", ignore_eos=False, max_tokens=50).json
    assert answer["choices"][0]["message"]["content"] == "ok, fine!"
    missing = server.chat()
    assert (missing.status, missing.error["param"]) == (400, "model")
    assert "org/talker" in missing.error["message"]
    assert server.chat(model="third").status == 404
    page = values(server.ask("/metrics").body.decode())
    assert page['vllm:generation_tokens_total{model_name="org/talker",engine="0"}'] == 10
    assert page['vllm:generation_tokens_total{model_name="plain",engine="0"}'] == 0


def test_the_page_only_when_asked_for(serving: Start) -> None:
    assert serving().ask("/").status == 404
    server = serving(ui=True)
    shown = server.ask("/")
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    files = [path for path in page.FOLDER.rglob("*") if path.suffix in (".js", ".css")]
    assert files
    for path in files:
        assert server.ask(f"/{path.relative_to(page.FOLDER)}").body == path.read_bytes()
    assert server.ask("/../server.py").status == 404


def test_a_page_behind_a_key_asks_the_browser_for_it(serving: Start) -> None:
    refused = serving(ui=True, api_keys=("k",)).ask("/")
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Basic")


def test_a_port_that_is_taken(null_server: Running) -> None:
    with pytest.raises(Unavailable, match="--port"):
        bind("localhost", null_server.port)
    with pytest.raises(Unavailable, match="no address"):
        bind("nothing.invalid", 0)


def test_a_model_without_a_template(serving: Start) -> None:
    from null_model import ByteTokenizer, manifest

    from sterna.runtime.null import NullExecutable

    engine = AsyncEngine.from_parts(
        NullExecutable(manifest(), 64),
        ByteTokenizer(),
        None,
        "bare",  # type: ignore[arg-type]
    )
    refused = serving(engine).chat()
    assert refused.status == 400
    assert "no chat template" in refused.error["message"]
