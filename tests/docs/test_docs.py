"""What the README and docs/ tell a user to type is run, page by page, on the demo model.

Blocks fenced as ```sh run and ```python run are run in order, each page in a folder of its own;
other blocks are only shown (they install, or need the network).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sterna.quantize.scheme import docs_table

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w+)(?P<run> run)?\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
SECONDS = 300


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    text: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text())
    return [Block(m["language"], m["text"], m["run"] is not None) for m in found]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`sterna` and `python` are this checkout's, and the cache is the tests' own."""
    folder = tmp_path_factory.mktemp("commands")
    python = shlex.quote(sys.executable)
    for name, command in (("sterna", f"{python} -m sterna"), ("python", python)):
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    own = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPO / "src"),
        "STERNA_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own}


def script(page: Path) -> str:
    """The blocks of a page that run, as one program for bash."""
    parts = ["set -euo pipefail"]
    for number, block in enumerate(block for block in blocks(page) if block.runs):
        if block.language == "python":
            parts.append(f"python - <<'END_OF_BLOCK_{number}'\n{block.text}END_OF_BLOCK_{number}")
        else:
            parts.append(block.text)
    return "\n".join(parts) + "\n"


def run(text: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the pages' commands are for a POSIX shell")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.runs for block in blocks(page))],
    ids=lambda page: page.stem,
)
def test_what_a_page_says_works(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    assert run(script(page), tmp_path, environment)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the Makefile's command is for a POSIX shell")
def test_the_demo_answers(tmp_path: Path, environment: dict[str, str]) -> None:
    makefile = (REPO / "Makefile").read_text()
    command = re.search(r"sterna (chat --prompt .*)", makefile)
    assert command is not None
    assert "42" in run(f"sterna {command[1]}", tmp_path, environment)


def test_pages_run_something() -> None:
    assert len([page for page in PAGES if any(block.runs for block in blocks(page))]) >= 6


def test_a_failing_command_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nexit 3\n```\n\n```sh run\nfalse\n```\n")
    with pytest.raises(AssertionError):
        run(script(page), tmp_path, dict(os.environ))


def test_quantization_shows_the_table() -> None:
    assert docs_table() in (REPO / "docs" / "quantization.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
