"""Killed without warning and started again: what was computed for a prompt is still there."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from running import sterna_serve, until

SOURCE = Path(__file__).resolve().parents[2] / "src"
STORY = "Tell me a story about a small dog who found a lamp and a kite by the old bridge."


def ask(url: str) -> Any:
    body = {"messages": [{"role": "user", "content": STORY}], "temperature": 0, "max_tokens": 12}
    body |= {"logprobs": True}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        kind = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), kind)
        return json.load(connection.getresponse())
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_and_started_again(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "STERNA_CACHE": str(tmp_path / "cache"),
    }
    kept = ("--prefix-cache-dir", str(tmp_path / "prefixes"))
    answers = []
    for _ in range(3):
        process, url = sterna_serve(environment, *kept)
        try:
            answers.append(ask(url))
            assert until(lambda: any((tmp_path / "prefixes").rglob("*.page")))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    first, *later = answers
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    for answer in later:
        assert answer["choices"] == first["choices"]
        assert answer["system_fingerprint"] == first["system_fingerprint"]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
