"""`sterna generate`: continue a raw prompt once, as text while it comes or as one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from sterna.base.errors import UsageError
from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.model import (
    ENGINE,
    add_model_flags,
    asked_model,
    open_engine,
    prompt_text,
    sampling,
)
from sterna.cli.say import harmless

if TYPE_CHECKING:
    from sterna.engine.engine import Engine

_EXAMPLE = """\
  sterna generate ./dist/M --prompt "Once upon a time" --max-tokens 64 --temperature 0
  echo "Once upon a time" | sterna generate ./dist/M --json"""


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "generate",
        "continue a prompt once",
        "Continue a prompt as it stands, without a chat template, and print what follows it.",
        _EXAMPLE,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model folder or HF://user/repo (default: the demo model)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the text to continue (default: stdin)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one object: text, token_ids, prompt_token_ids, finish_reason, usage, timings",
    )
    add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError('there is no prompt; give one with --prompt "..." or through a pipe')
    prompt, options = prompt_text(args.prompt), sampling(args)
    options["model"] = asked_model(args)
    with open_engine(args, (*ENGINE, "lora")) as engine:
        if args.json:
            print(json.dumps(completion(engine, prompt, options), ensure_ascii=False))
        else:
            _stream(engine, prompt, options)
    return 0


def completion(engine: Engine, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The whole answer as the object that `--json` prints."""
    result = engine.completions.create(prompt=prompt, return_token_ids=True, **options)
    plain, choice = result.model_dump(), result.choices[0]
    return {
        "text": choice.text,
        "token_ids": choice.token_ids,
        "prompt_token_ids": choice.prompt_token_ids,
        "finish_reason": choice.finish_reason,
        "usage": plain["usage"],
        "timings": plain["timings"],
    }


def _stream(engine: Engine, prompt: str, options: dict[str, Any]) -> None:
    show = harmless if sys.stdout.isatty() else str
    with engine.completions.create(prompt=prompt, stream=True, **options) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                sys.stdout.write(show(choice.text))
                sys.stdout.flush()
    print()
