"""`sterna serve`: what its arguments become, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import null

from sterna import local
from sterna.cli import main as command
from sterna.cli import serve as verb
from sterna.engine import loader
from sterna.engine.engine import AsyncEngine
from sterna.engine.options import EngineOptions, Mode
from sterna.serve import server
from sterna.serve.options import ServeOptions


class Served:
    """What the command asked for."""

    engines: dict[str, AsyncEngine]
    options: ServeOptions
    loaded: list[tuple[str | None, str | None, EngineOptions]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    asked = Served()
    asked.engines, asked.loaded = {}, []

    def load(name: str | None, model: Any, draft: Any, options: EngineOptions) -> AsyncEngine:
        asked.loaded.append((name, model, options))
        engine = null()
        object.__setattr__(engine._parts, "model_name", name or "own")
        return engine

    def serve(engines: dict[str, AsyncEngine], options: ServeOptions, ready: Any) -> None:
        asked.engines, asked.options = engines, options
        ready("http://localhost:1")
        for engine in engines.values():
            engine.close()

    monkeypatch.setattr(local, "locate", lambda model, *_, **__: model)
    monkeypatch.setattr(loader, "share_memory", lambda models, options: [options] * len(models))
    monkeypatch.setattr(loader, "embeds", lambda model: model == "./embeds")
    monkeypatch.setattr(verb, "_load", load)
    monkeypatch.setattr(server, "serve", serve)
    return asked


def test_without_arguments(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["serve"]) == 0
    assert served.loaded == [(None, None, EngineOptions(mode=Mode.SERVER))]
    assert served.options == ServeOptions()
    assert "serving on http://localhost:1" in capsys.readouterr().err


def test_models_by_name(served: Served) -> None:
    arguments = ["serve", "one=./a", "--model", "HF://user/repo", "--model", "./x=y"]
    assert command.main([*arguments[:4]]) == 0
    assert list(served.engines) == ["one", "own"]
    assert [model for _, model, _ in served.loaded] == ["./a", "HF://user/repo"]


def test_what_is_for_models_that_write_does_not_trouble_one_beside_them(served: Served) -> None:
    speculative = EngineOptions(mode=Mode.SERVER, speculative="ngram")
    assert command.main(["serve", "a=./embeds", "b=./b", "--speculative", "ngram"]) == 0
    assert served.loaded[0][2] == EngineOptions(mode=Mode.SERVER)
    assert served.loaded[1][2] == speculative
    assert command.main(["serve", "./embeds", "--speculative", "ngram"]) == 0
    assert served.loaded[2][2] == speculative  # which it will refuse


def test_a_path_may_have_an_equals_sign(served: Served) -> None:
    assert command.main(["serve", "./x=y"]) == 0
    assert served.loaded[0][:2] == (None, "./x=y")


def test_settings(served: Served, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("two\nthree\n")
    given = "--host :: --port 9 --ui --api-key one --allow-host a.example --max-body 5000"
    given += " --allow-origin https://b.example --grace 2.5 --mode local --max-num-sequence 3"
    assert command.main(["serve", *given.split(), "--api-key-file", str(keys)]) == 0
    assert served.options == ServeOptions(
        host="::",
        port=9,
        ui=True,
        api_keys=("one", "two", "three"),
        allow_hosts=("a.example",),
        allow_origins=("https://b.example",),
        max_body=5000,
        grace=2.5,
    )
    assert served.loaded[0][2] == EngineOptions(mode=Mode.LOCAL, max_num_sequence=3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a=./x", "a=./y"], "two models are called a"),
        (["./x", "./y"], "two models are called own"),
        (["=./x"], "NAME=MODEL"),
        (["a=", "--port", "1"], "NAME=MODEL"),
        (["./x", "./y", "--model-lib", "./l"], "--model-lib"),
        (["./x", "./y", "--trace", "steps.json"], "--trace"),
        (["--host", "::"], "--api-key"),
        (["--port", "x"], "not an integer"),
        (["--port", "70000"], "port is 70000"),
        (["--grace", "-1"], "grace"),
        (["--allow-origin", "b.example"], "no origin"),
        (["--api-key", ""], "API key"),
        (["--device", "abacus"], "abacus"),
        (["--cors"], "no option --cors"),
    ],
)
def test_what_makes_no_sense(
    served: Served, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert command.main(["serve", *arguments]) in (1, 2)
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert not served.engines
