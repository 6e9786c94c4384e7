"""OpenAI's own Node client: what an application in JavaScript sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Process, Running, scripted, until

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parents[1] / ".venv" / "node"
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def run(url: str, model: str, **environment: str) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "openai").is_dir():
        pytest.skip("needs node, and openai in .venv/node, which `make test` installs with npm")
    done = subprocess.run(
        [node, str(HERE / "node" / "client.mjs")],
        env={
            **os.environ,
            "NODE_PACKAGES": str(PACKAGES),
            "STERNA_URL": f"{url}/v1",
            "STERNA_MODEL": model,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_the_node_client(serving: Callable[..., Running]) -> None:
    server = serving(scripted(), api_keys=("key",))
    seen = run(server.url, "null", STERNA_KEY="key")
    assert seen["models"] == ["null"]
    assert seen["whole"] == seen["streamed"] == seen["response"] == "ok, fine!"
    assert seen["logprobs"]
    assert seen["usage"] == seen["completion_tokens"] == 10
    assert seen["events"] == EVENTS
    assert seen["error"] == ["BadRequestError", 400, "temperature"]
    assert seen["denied"] == ["AuthenticationError", 401]
    assert seen["aborted"]
    assert until(server.idle)


@pytest.mark.slow
def test_tools_and_schemas_with_a_model(demo_process: Process) -> None:
    seen = run(demo_process.url, demo_process.model, STERNA_KEY="any", STERNA_TOOLS="1")
    assert seen["call"].keys() == {"days"}
    assert 1 <= seen["call"]["days"] <= 7
    assert seen["formed"] in ({"warm": True}, {"warm": False})
    assert seen["whole"] == seen["streamed"]
