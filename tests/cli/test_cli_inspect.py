"""`sterna inspect`: which report is asked for, and where it goes."""

import sys
from types import SimpleNamespace

import pytest

import sterna
from sterna.cli.main import main


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A file to look into, and a room that says what it was asked."""
    room = SimpleNamespace(
        report=lambda path, context: f"{path.name} at {context}\x1b[2J",
        html=lambda path, context: f"<p>{path.name} at {context}</p>",
    )
    monkeypatch.setitem(sys.modules, "sterna.inspection", room)
    monkeypatch.setattr(sterna, "inspection", room, raising=False)
    path = tmp_path / "M.so"
    path.touch()
    return path


def test_text_goes_to_stdout_without_escapes(library, capsys):
    assert main(["inspect", str(library), "--context", "512"]) == 0
    assert capsys.readouterr().out == "M.so at 512\\x1b[2J\n"


def test_a_page_goes_to_a_file(library, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["inspect", str(library), "--html", str(page)]) == 0
    assert page.read_text() == "<p>M.so at None</p>"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["/nowhere"], 2, "there is no file or folder /nowhere"),
        (["LIB", "--context", "-1"], 2, "--context is -1, possible is 0 or more"),
        (["LIB", "--context", "all"], 2, "'all' is not an integer"),
        (["LIB", "--html", "/nowhere/report.html"], 1, "No such file or directory"),
    ],
)
def test_what_cannot_be_shown(words, code, sentence, library, capsys):
    assert main(["inspect", *(str(library) if w == "LIB" else w for w in words)]) == code
    assert sentence in capsys.readouterr().err
