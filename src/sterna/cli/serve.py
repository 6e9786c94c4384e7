"""`sterna serve`: models as a server that speaks OpenAI's API."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.errors import UsageError
from sterna.cli.arguments import (
    DEVICE_HELP,
    Subparsers,
    add_option_flags,
    add_verb,
    given_options,
    number,
)
from sterna.cli.model import find_models
from sterna.cli.say import note
from sterna.engine.options import EngineOptions, Mode

if TYPE_CHECKING:
    from sterna.engine.loader import Located
    from sterna.serve.models import Model

_EXAMPLE = """\
  sterna serve                                 the demo model, on http://localhost:8000
  sterna serve ./dist/M --port 9000 --ui       with a chat page at http://localhost:9000
  sterna serve --model small=./dist/S --model large=./dist/L
  sterna serve ./dist/M --host :: --api-key-file keys.txt
  sterna serve --web ./dist/M-web              a page that computes in the browser"""
_ENGINE = tuple(option.name for option in fields(EngineOptions))


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "serve",
        "answer requests over HTTP as OpenAI's API does",
        "Serve one or more models over HTTP: OpenAI's chat, text completions and responses.",
        _EXAMPLE,
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="a model folder or HF://user/repo, or NAME=MODEL (default: the demo model)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        dest="more",
        action="append",
        default=[],
        help="the same; as often as there are models",
    )
    parser.add_argument(
        "--model-lib",
        metavar="LIB",
        help="a library that `sterna compile` made, for one model (default: compile one)",
    )
    parser.add_argument(
        "--quantization",
        metavar="SCHEME",
        help="for models that are not converted yet (default: chosen for the model)",
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    _add_access(parser)
    _add_limits(parser)
    add_option_flags(parser.add_argument_group("engine"), EngineOptions, _ENGINE)
    parser.set_defaults(run=run)


def _add_access(parser: argparse.ArgumentParser) -> None:
    access = parser.add_argument_group("access")
    access.add_argument("--host", metavar="NAME", help="where to listen (default: localhost)")
    access.add_argument(
        "--port", type=number(int), metavar="N", help="and there, the port (default: 8000; 0: any)"
    )
    access.add_argument("--ui", action="store_const", const=True, help="a chat page at /")
    access.add_argument(
        "--web",
        metavar="FOLDER",
        action="append",
        default=[],
        type=Path,
        help="instead of a model: a page at / that computes in the browser, with this folder "
        "that `sterna compile` wrote for browsers",
    )
    access.add_argument(
        "--api-key",
        metavar="KEY",
        action="append",
        default=[],
        help="answer only requests with this key, or another one given (other users of this "
        "machine may see it; --api-key-file hides it)",
    )
    access.add_argument(
        "--api-key-file",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="a file of such keys, one a line",
    )
    access.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name of this server beside its addresses",
    )
    access.add_argument(
        "--allow-origin",
        metavar="URL",
        action="append",
        default=[],
        help="web pages of this origin may read answers (* for all)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    from sterna.serve.options import ServeOptions

    add_option_flags(parser.add_argument_group("limits"), ServeOptions, _limits())


def _limits() -> tuple[str, ...]:
    from sterna.serve.options import ServeOptions

    limited = (option.name for option in fields(ServeOptions) if option.metadata)
    return tuple(name for name in limited if name != "port")


def run(args: argparse.Namespace) -> int:
    from sterna.serve.options import ServeOptions, read_keys
    from sterna.serve.server import serve, serve_web

    keys = [*args.api_key, *(key for path in args.api_key_file for key in read_keys(path))]
    options = ServeOptions(
        api_keys=tuple(keys),
        allow_hosts=tuple(args.allow_host),
        allow_origins=tuple(args.allow_origin),
        web=tuple(args.web),
        **given_options(args, ("host", "port", "ui", *_limits())),
    )
    if options.web:
        if args.models or args.more:
            raise UsageError("--web serves folders that browsers run; leave out the models")
        serve_web(options, _announce)
    else:
        serve(engines(args), options, _announce)
    return 0


def _announce(url: str) -> None:
    note(f"serving on {url}; Ctrl-C stops")


def engines(args: argparse.Namespace) -> dict[str, Model]:
    """Convert and compile what is missing, then load every model, each under its name."""
    given = [_named(text) for text in [*args.models, *args.more]]
    named: list[tuple[str | None, str | None]] = [*given] or [(None, None)]
    if args.model_lib is not None and len(named) > 1:
        raise UsageError("--model-lib belongs to one model; compile the others beforehand")
    chosen: dict[str, Any] = {"mode": Mode.SERVER} | given_options(args, _ENGINE)
    options = EngineOptions(**chosen)
    if options.lora and len(named) > 1:
        raise UsageError("--lora belongs to one model; serve the others by themselves")
    if options.trace is not None and len(named) > 1:
        raise UsageError("--trace belongs to one model; serve the others by themselves")
    _check_names([name for name, _ in named if name is not None])
    from sterna.engine.loader import embeds, share_memory, without_generating

    found, draft = find_models(args, [model for _, model in named], options)
    writing = not all(embeds(model) for model in found)
    loaded: dict[str, Model] = {}
    try:
        for (name, _), model, own in zip(named, found, share_memory(found, options), strict=True):
            if writing and embeds(model):
                own = without_generating(own)
            engine = _load(name, model, draft, own)
            _check_names([*loaded, engine.model_name])
            loaded[engine.model_name] = engine
            note(f"{engine.model_name}: {engine.context_window} tokens of context")
            for adapter in getattr(engine, "adapters", ()):
                note(f"{adapter}: an adapter of {engine.model_name}")
    except BaseException:
        for engine in loaded.values():
            engine.close()
        raise
    return loaded


def _load(name: str | None, model: Located, draft: Located, options: EngineOptions) -> Model:
    from sterna.engine.embedder import Embedder
    from sterna.engine.engine import AsyncEngine
    from sterna.engine.loader import embeds

    if embeds(model):
        return Embedder(resolve=lambda *_: model, options=options, name=name)
    return AsyncEngine(
        resolve=lambda asked, *_: draft if asked else model, options=options, name=name
    )


def _named(text: str) -> tuple[str | None, str]:
    """NAME=MODEL, or a model that goes by its own name."""
    name, equals, model = text.partition("=")
    if not equals or "/" in name or "\\" in name:
        return None, text
    if not name or not model:
        raise UsageError(f"{text!r} is not of the form NAME=MODEL")
    return name, model


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name}; give one another name: NAME=MODEL")
