"""Text for terminals, and progress on stderr."""

import io

import pytest

from sterna.cli.progress import Bars, lines, shown
from sterna.cli.say import harmless, one_line, size, wrapped


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain ünïcödé 日本語 🐦", "plain ünïcödé 日本語 🐦"),
        ("line\n\tnext", "line\n\tnext"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J\x7f\x00\r", "\\x9b2J\\x7f\\x00\\r"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff", "\\udcff"),
        ("👩\u200d👧", "👩\u200d👧"),  # a joiner moves nothing
    ],
)
def test_harmless(text, safe):
    assert harmless(text) == safe


def test_one_line():
    assert one_line("a\n  b\tc") == "a b c"


def test_wrapped_cuts_between_words_and_keeps_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    assert wrapped("a    b\nsome words that are too many\n\n  x") == (
        "a    b\nsome words that are too\nmany\n\n  x"
    )
    assert wrapped("x" * 40) == "x" * 40


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 42, "20.0 TiB")],
)
def test_size(count, text):
    assert size(count) == text


def test_logs_get_messages_and_no_shares(capsys):
    report = lines()
    report("convert", "M to q4f16_1", 0, 0)
    report("convert", "layer.0", 1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "convert: M to q4f16_1\n")


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_terminals_get_bars(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with shown() as report:
        report("convert", "M to \x1b[31mq4f16_1", 0, 0)
        report("convert", "layer.0", 1, 2)
        report("convert", "[bold]layer.1", 2, 2)
    text = screen.getvalue()
    assert "convert: M to \\x1b[31mq4f16_1" in text
    assert "100%" in text
    assert "[bold]layer.1" in text


def test_nothing_to_show_shows_nothing(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    Bars().stop()
    assert screen.getvalue() == ""


def test_a_message_alone_draws_no_bar(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    bars = Bars()
    monkeypatch.setattr(bars, "_start", lambda: pytest.fail("rich was loaded"))
    bars.report("device", "cpu was chosen", 0, 0)
    assert "device: cpu was chosen" in screen.getvalue()
