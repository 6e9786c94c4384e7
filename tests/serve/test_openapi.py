"""The document that the server gives of itself: complete, sound, and true of every answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, null

from sterna.engine.options import SamplingOptions
from sterna.serve.app import OPERATIONS


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.fixture(scope="module")
def document(null_server: Running) -> dict[str, Any]:
    found: dict[str, Any] = null_server.ask("/openapi.json").json
    return found


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    wanted = {reference.rpartition("/")[2] for reference in references(document)}
    assert wanted <= schemas.keys()


def test_every_sampling_option_is_in_it(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    for option in SamplingOptions.__dataclass_fields__:
        assert option in fields
    assert document["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False


@pytest.mark.slow
def test_schemathesis_finds_no_answer_that_the_document_denies(
    serving: Callable[..., Running], tmp_path: Path
) -> None:
    """Except what no schema can say: which prompt fits the window, which model is here."""
    server = serving(null(window=64))  # answers are short
    command = shutil.which("st", path=os.path.dirname(sys.executable))
    if command is None:
        pytest.skip("needs schemathesis")
    options = ["--seed", "1", "--max-examples", "12", "--phases", "examples,coverage,fuzzing"]
    source = f"{server.url}/openapi.json"
    done = subprocess.run(
        [command, "run", source, *options, "--exclude-checks", "positive_data_acceptance"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
