"""The frame of the command line: help, spelling, failures as one sentence, exit codes, speed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sterna
from sterna.base.errors import CheckpointError, OutOfMemory, UsageError
from sterna.cli import devices
from sterna.cli.main import VERBS, main

REPO = Path(__file__).resolve().parents[2]


def python(*words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, **settings
    )


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_every_verb_and_shows_an_example(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"    {verb}" in out for verb in VERBS)
    assert "sterna chat HF://user/repo" in out


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"example:\n  sterna {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["convert_weight", "convert-weight", "gen_config", "gen-config"])
def test_both_spellings(word, capsys):
    assert main([word, "--help"]) == 0
    assert f"usage: sterna {word.replace('-', '_')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chta"], "there is no command 'chta'; did you mean chat?"),
        (["--modle"], "`sterna` has no option --modle; possible are --help, --version"),
        (["chat", "--temprature=1"], "has no option --temprature; did you mean --temperature?"),
        (["generate", "--promt", "x"], "has no option --promt; did you mean --prompt?"),
        (["chat", "--top-k", "many"], "argument --top-k: 'many' is not an integer"),
        (["chat", "--temp", "1"], "has no option --temp"),  # no silent abbreviations
        (["chat", "--prompt"], "a value that begins with - is written --option=VALUE"),
        (["chat", "--mode", "fast"], "'local', 'interactive', 'server'"),
        (["chat", "one", "two"], "unrecognized arguments: two"),
        (["cache", "burn"], "'list', 'clear'"),
        (["inspect"], "PATH"),
    ],
)
def test_a_command_that_makes_no_sense(words, sentence, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sterna: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


def test_an_option_out_of_range_is_refused_before_anything_is_loaded(capsys):
    assert main(["chat", "/nowhere", "--temperature", "-1", "--prompt", "x"]) == 1
    assert "temperature is -1.0, possible is a number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (CheckpointError("two\nlines"), 1, "two lines"),
        (OutOfMemory("too big"), 1, "too big"),
        (UsageError("what?"), 2, "what?"),
        (FileNotFoundError(2, "No such file", "there"), 1, "No such file (there)"),
        (MemoryError(), 1, "too little memory"),
        (CheckpointError("\x1b[31mred\u202e"), 1, "\\x1b[31mred\\u202e"),
        (ZeroDivisionError("oops"), 1, "a mistake in Sterna itself (ZeroDivisionError: oops)"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_is_one_sentence(error, code, sentence, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(devices, "run", fail)
    assert main(["devices"]) == code
    err = capsys.readouterr().err
    assert err == "" if not sentence else sentence in err
    assert err.count("\n") <= 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback_and_the_sentence(monkeypatch, capsys):
    def fail(args):
        raise CheckpointError("broken")

    monkeypatch.setattr(devices, "run", fail)
    monkeypatch.setenv("STERNA_DEBUG", "1")
    assert main(["devices"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("sterna: broken\n")


def test_nobody_reads_the_output():
    command = f"{sys.executable} -m sterna --help | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src"), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", f"sleep 0.1; {command}"], capture_output=True, text=True, env=environment
    )
    assert done.returncode in (0, 141)  # the reader may be gone before or after
    assert done.stderr == ""


def test_a_closed_pipe_ends_quietly():
    code = (
        "import os, sys\n"
        "from sterna.cli.main import main\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.exit(main(['cache', 'list']))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (141, "")


def test_python_m_sterna():
    done = python("-m", "sterna", "--version")
    assert (done.returncode, done.stdout) == (0, f"sterna {sterna.__version__}\n")


def test_the_version_is_pyprojects():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["version"] == sterna.__version__


def test_importing_sterna_and_asking_for_help_loads_nothing_heavy():
    code = (
        "import sys, sterna\n"
        "from sterna.cli.main import main\n"
        "main(['--help']); main(['chat', '--help'])\n"
        "heavy = 'numpy jinja2 tokenizers msgspec rich prompt_toolkit ml_dtypes huggingface_hub'\n"
        "print([name for name in heavy.split() if name in sys.modules], file=sys.stderr)"
    )
    assert python("-c", code).stderr == "[]\n"


def test_the_public_names():
    assert sterna.MLCEngine is sterna.Engine
    assert sterna.AsyncMLCEngine is sterna.AsyncEngine
    assert issubclass(UsageError, sterna.Error)
    assert set(sterna.__all__) <= set(dir(sterna))
    with pytest.raises(AttributeError, match="'sterna' has no attribute 'Engin'"):
        _ = sterna.Engin
