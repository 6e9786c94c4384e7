"""Markdown on the terminal: however an answer is cut into pieces, the same stands there at last."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sterna.cli.markdown import MarkdownView, blocks
from sterna.cli.say import harmless

PARTS = st.sampled_from(
    [
        "word", " and more", "\n", "\n\n", "# Head\n", "- item\n", "  - inner\n", "1. one\n", "2. ",
        "```py\n", "```\n", "    code\n", "> quote\n", "|a|b|\n", "|-|-|\n", "|1|2|\n", "---\n",
        "**bold", "**", "*", "`", "[x](http://y.z)", "<b>", "===\n", "\\", "&amp;", "[r]: /u\n",
        "é🐦", "\x1b[31m", "\r",
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=25)


def shown(pieces, reasoning=(), width=40):
    file = io.StringIO()
    console = Console(file=file, width=width, height=20, highlight=False, markup=False)
    with MarkdownView(console) as view:
        for piece in reasoning:
            view.reasoning(piece)
        for piece in pieces:
            view.text(piece)
    return file.getvalue()


@settings(max_examples=150, derandomize=True, deadline=None)
@given(TEXTS)
def test_pieces_do_not_show(parts):
    text = "".join(parts)
    assert shown(parts) == shown([text]) == shown(text)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(TEXTS)
def test_blocks_are_the_text(parts):
    text = harmless("".join(parts))
    assert "".join(blocks(text)) == text


@settings(max_examples=150, derandomize=True, deadline=None)
@given(TEXTS, TEXTS)
def test_a_complete_block_stays_as_it_is(parts, more):
    """What is printed for good is not changed by what follows."""
    text = harmless("".join(parts))
    complete = blocks(text)[:-1]
    assert blocks(text + harmless("".join(more)))[: len(complete)] == complete


def test_reasoning_comes_first_and_apart():
    out = shown(["**42**"], reasoning=["let *me*", " think\n"])
    assert out == "let *me* think\n\n42\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<script>x</script>", "<script>x</script>"),
        ("a <b>c</b>", "a <b>c</b>"),
        ("<!-- hidden -->", "<!-- hidden -->"),
        ("[here](http://x.org)", "here (http://x.org)"),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
        ("\x1b[2Jx\x07", r"\x1b[2Jx\x07"),
        ("a\u202eb", r"a\u202eb"),
    ],
)
def test_nothing_is_hidden(text, words):
    assert words in shown([text], width=80)


def test_text_without_anything():
    assert shown([]) == shown([""]) == shown(["\n \n"]) == ""
