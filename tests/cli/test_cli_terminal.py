"""The input line: keys, completion, history. prompt_toolkit runs on a pipe instead of a screen."""

import os
import stat

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from sterna.cli.terminal import CommandCompleter, Terminal


@pytest.fixture
def typed():
    """Type text into a fresh terminal; read as many messages as asked for."""

    def run(text, reads=1):
        with create_pipe_input() as keys:
            keys.send_text(text)
            terminal = Terminal(lambda: "context", keys, DummyOutput())
            return [terminal.read() for _ in range(reads)]

    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\r", "hello"),
        ("two\x1b\rlines\r", "two\nlines"),
        ("two\nlines\r", "two\nlines"),
        ("\x1b[200~pasted\nlines\x1b[201~\r", "pasted\nlines"),
        ("lost\x03kept\r", "kept"),
        ("\x04", None),
    ],
)
def test_keys(text, message, typed):
    assert typed(text) == [message]


def test_history_is_kept_between_runs_for_this_user_alone(typed, own_cache):
    assert typed("first\rsecond\r", reads=2) == ["first", "second"]
    assert typed("\x1b[A\x1b[A\r") == ["first"]
    path = own_cache / "history" / "chat"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_cache_folder_no_history(typed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "file"))
    assert typed("hello\r") == ["hello"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/s", ["/set", "/system", "/stats", "/save"]),
        ("/load no-such-f", []),
        ("/set top", ["top_p=", "top_k="]),
        ("/set top_k=4;see", ["seed="]),
        ("/stats ", []),
        ("what is /s", []),
        ("hello", []),
        ("/x\n/s", []),
    ],
)
def test_completion(text, found):
    completions = CommandCompleter().get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in completions] == found


def test_paths_complete_after_load(tmp_path):
    (tmp_path / "one.json").touch()
    (tmp_path / "two.json").touch()
    found = CommandCompleter().get_completions(Document(f"/load {tmp_path}/o"), CompleteEvent())
    assert [completion.text for completion in found] == ["ne.json"]
