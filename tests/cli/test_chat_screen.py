"""`sterna chat` as people see it: on a pseudo-terminal, with a screen to look at."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_model import ANSWER

from sterna.cli.main import main

pytest.importorskip("pty", reason="needs a system with pseudo-terminals")
pytest.importorskip("pyte", reason="needs pyte to look at a terminal's screen")

from screen import Screen

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"

MARKDOWN = """# Fox

A **quick** `fox` <b>jumps</b>.

- one
- two

```python
x = 1
```

| name | legs |
|---|---|
| fox | 4 |
"""


@pytest.fixture
def chat(own_cache):
    @contextmanager
    def start(answer=ANSWER, *flags, window=4096, pause=0.0, columns=80, rows=24, **env):
        command = [
            sys.executable, str(HERE / "pty_chat.py"), answer, str(window), str(pause), *flags
        ]  # fmt: skip
        settings = {"PYTHONPATH": str(SOURCE), "NO_COLOR": "", **env}
        with Screen(command, settings, columns, rows) as screen:
            if "--prompt" not in flags:
                screen.wait("scripted: write", "context ░")
            yield screen

    return start


def test_a_conversation(chat):
    with chat() as screen:
        screen.type("hi\r")
        screen.wait(ANSWER, "[10 tokens", "0 of 19 prompt tokens reused", "context ▏")
        screen.type("again\r")
        screen.wait("19 of 52 prompt tokens reused", "of 4096")
        screen.type("/exit\r")
        assert screen.wait_end() == 0
        lines = screen.lines
        assert lines.count(ANSWER) == 2
        assert lines.index(">>> hi") + 1 == lines.index(ANSWER)


def test_markdown_is_rendered(chat):
    with chat(MARKDOWN) as screen:
        screen.type("hi\r")
        screen.wait("tokens/s")
        shown = screen.lines[screen.lines.index(">>> hi") + 1 :]
        assert shown[:6] == ["Fox", "", "A quick fox <b>jumps</b>.", "", " • one", " • two"]
        assert shown[7].startswith("python ───")
        assert shown[8] == "x = 1"
        assert [line.split() for line in shown[11:14:2]] == [["name", "legs"], ["fox", "4"]]
        assert shown[14].startswith("[113 tokens")


def test_plain_shows_what_the_model_wrote(chat):
    with chat(MARKDOWN, "--plain") as screen:
        screen.type("hi\r")
        screen.wait("tokens/s")
        start = screen.lines.index(">>> hi") + 1
        assert screen.lines[start : start + 13] == MARKDOWN.splitlines()[:13]


def test_a_block_taller_than_the_screen_is_shown_whole(chat):
    items = "".join(f"- item {i}\n" for i in range(60))
    with chat(items, rows=12) as screen:
        screen.type("hi\r")
        screen.wait("tokens/s")
        shown = [line for line in screen.lines if "• item" in line]
        assert shown == [f" • item {i}" for i in range(60)]


def test_ctrl_c_stops_the_answer_and_not_the_program(chat):
    with chat("word " * 400, pause=0.02) as screen:
        screen.type("hi\r")
        screen.wait("word word")
        screen.type("\x03")
        screen.wait("[stopped]", ">>>")
        screen.type("more\r")
        screen.wait(">>> more\nword word")  # before the line is taken Ctrl-C is a key like others
        screen.type("\x03")
        screen.wait("[stopped]", times=2)
        screen.type("\x04")
        assert screen.wait_end() == 0
        assert b"\x1b[?25h" in screen.raw.rpartition(b"\x1b[?25l")[2]  # the cursor is back


def test_ctrl_c_at_the_prompt_clears_the_line(chat):
    with chat() as screen:
        screen.type("unfinished")
        screen.wait(">>> unfinished")
        screen.type("\x03")
        screen.wait("Ctrl-D or /exit leaves")
        screen.type("hi\r")
        screen.wait(ANSWER)


def test_commands_are_completed(chat):
    with chat() as screen:
        screen.type("/se")
        screen.wait("/set", "temperature=0.7")
        screen.type("\t temper")
        screen.wait("0 is greedy; higher is more random")
        screen.type("\t0\r")
        screen.wait("set: temperature=0.0", "· temperature=0.0")


def test_several_lines_make_one_message(chat):
    with chat() as screen:
        screen.type("one\x1b\rtwo\ntwo and a half\r")
        screen.wait(">>> one", "... two", "... two and a half", ANSWER)


def test_an_answer_is_written_again(chat):
    with chat() as screen:
        screen.type("/regen\r")
        screen.wait("there is no answer yet to write again")
        screen.type("hi\r")
        screen.wait("0 of 19 prompt tokens reused")
        screen.type("/regen\r")
        screen.wait("18 of 19 prompt tokens reused")
        assert screen.lines.count(ANSWER) == 2


def test_a_narrow_screen_wraps_words(chat):
    with chat("some words " * 12, columns=30) as screen:
        screen.type("hi\r")
        screen.wait("tokens/s")
        start = screen.lines.index(">>> hi") + 1
        assert screen.lines[start] == "some words some words some"


def test_no_colour_where_none_is_wanted(chat):
    with chat(MARKDOWN, NO_COLOR="1") as screen:
        screen.type("hi\r/nope\r")
        screen.wait("tokens/s", "there is no command")
        codes = [part.partition(b"m")[0] for part in screen.raw.split(b"\x1b[")[1:]]
        numbers = {
            n for code in codes if code.replace(b";", b"").isdigit() for n in code.split(b";")
        }
        assert not numbers & {*(b"%d" % n for n in (*range(30, 39), *range(90, 98), 48))}


def test_the_models_escapes_do_not_reach_the_screen(chat):
    with chat("a\x1b]0;title\x07b\x1b[2J") as screen:
        screen.type("hi\r")
        screen.wait(r"a\x1b]0;title\x07b\x1b[2J")
        assert b"title\x07" not in screen.raw


def test_one_answer_on_a_terminal_is_rendered_too(chat):
    with chat(MARKDOWN, "--prompt", "hi") as screen:
        assert screen.wait_end() == 0
        assert screen.lines[:3] == ["Fox", "", "A quick fox <b>jumps</b>."]


def test_reasoning_comes_first_dimmed_and_is_not_said_again(chat):
    thought = "<think>\nhm, **well**\n</think>\n\nIt is **42**."
    with chat(thought) as screen:
        screen.type("hi\r")
        screen.wait("It is 42.", "of them thinking", "tokens/s")
        start = screen.lines.index(">>> hi") + 1
        assert screen.lines[start : start + 3] == ["hm, **well**", "", "It is 42."]
        assert b"\x1b[2;3mhm, **well**" in screen.raw
        screen.type("/set max_tokens=1\ragain\r")
        prompt = len("user: hi\nassistant: It is **42**.\nuser: again\nassistant:")
        screen.wait(f"of {prompt} prompt tokens reused")


def test_a_pipe_gets_no_reasoning(model, capsys):
    model(answer="<think>\nhm\n</think>\n\n42")
    assert main(["chat", "--prompt", "hi"]) == 0
    assert capsys.readouterr().out == "42\n"
