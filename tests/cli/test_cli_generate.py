"""`sterna generate`: text as it comes, one JSON object, and prompts that cannot be served."""

import json

import pytest
from scripted_model import ANSWER

from sterna.cli.main import main


def test_prints_the_continuation_and_nothing_else(model, capsys):
    assert main(["generate", "--prompt", "say:"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (ANSWER + "\n", "")


def test_json_prints_one_object(model, capsys):
    assert main(["generate", "--prompt", "é:", "--max-tokens", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "text", "token_ids", "prompt_token_ids", "finish_reason", "usage", "timings",
    ]  # fmt: skip
    assert found["text"] == "ok"
    assert found["token_ids"] == list(b"ok")
    assert found["prompt_token_ids"] == list("é:".encode())
    assert found["finish_reason"] == "length"
    counts = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert found["usage"].items() >= counts.items()
    assert found["timings"]["time_to_first_token_s"] > 0


def test_options_reach_the_sampler(model, capsys):
    words = ["--stop", "f", "--stop", "!", "--temperature", "0", "--seed", "1"]
    assert main(["generate", "--prompt", ":", *words]) == 0
    assert capsys.readouterr().out == "ok, \n"


def test_the_prompt_comes_through_a_pipe(model, stdin, capsys):
    stdin(b"say:\n")
    assert main(["generate"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the prompt is empty"),
        (b"\n", "the prompt is empty"),
        (b"ok \xff", "the prompt is not valid UTF-8 (byte 3)"),
    ],
)
def test_pipes_that_hold_no_prompt(data, sentence, model, stdin, capsys):
    stdin(data)
    assert main(["generate"]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "the prompt is empty"),
        ("\udcff", "the prompt is not valid UTF-8 (at character 0)"),  # as argv has b"\xff"
        ("x" * 256, "the prompt has 256 tokens, the context window is 256 tokens"),
    ],
)
def test_prompts_that_cannot_be_served(prompt, sentence, model, capsys):
    assert main(["generate", "--prompt", prompt]) == 1
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_a_terminal_without_a_prompt(model, stdin, monkeypatch, capsys):
    stdin(b"")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["generate"]) == 2
    assert "there is no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--device", "abacus"], "device is 'abacus', possible are"),
        (["--threads", "0"], "threads is 0, possible is an integer of at least 1"),
        (["--top-p", "2"], "top_p is 2.0, possible is a number from 0 to 1"),
    ],
)
def test_options_are_checked_before_a_model_is_made(flags, sentence, own_cache, capsys):
    assert main(["generate", "--prompt", "x", *flags]) == 1
    assert sentence in capsys.readouterr().err
    assert not own_cache.exists()
