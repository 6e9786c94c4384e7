"""The flags with which `chat` and `generate` name a model, and the engine that comes of them.

In: parsed arguments. Out: a running engine; what had to be made on the way is told on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sterna.base.errors import RequestError, UsageError
from sterna.cli.arguments import DEVICE_HELP, add_option_flags, given_options
from sterna.cli.progress import shown
from sterna.engine.options import EngineOptions, SamplingOptions, override

if TYPE_CHECKING:
    from sterna.engine.engine import Engine
    from sterna.engine.loader import Located

_ELSEWHERE = ("logit_bias", "logprobs", "top_logprobs", "n")  # for programs: not one answer's text
SAMPLING = tuple(o.name for o in fields(SamplingOptions) if o.name not in _ELSEWHERE)
ENGINE = tuple(option.name for option in fields(EngineOptions) if option.name != "lora")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `add_engine_flags`, and a group for sampling options."""
    add_option_flags(parser.add_argument_group("sampling"), SamplingOptions, SAMPLING)
    add_engine_flags(parser, (*ENGINE, "lora"))


def add_engine_flags(parser: argparse.ArgumentParser, options: Iterable[str]) -> None:
    """--model-lib, --device, --quantization, and a group for these engine options."""
    parser.add_argument(
        "--model-lib",
        metavar="LIB",
        help="a library that `sterna compile` made (default: compile one into the cache)",
    )
    parser.add_argument(
        "--quantization",
        metavar="SCHEME",
        help="for a model that is not converted yet (default: chosen for the model)",
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_option_flags(parser.add_argument_group("engine"), EngineOptions, options)


def sampling(args: argparse.Namespace) -> dict[str, object]:
    """The sampling options given, checked before anything slow begins."""
    given = given_options(args, SAMPLING)
    override(SamplingOptions(), given)
    return given


def asked_model(args: argparse.Namespace) -> str | None:
    """The adapter to talk to, where one was given; None is the model itself."""
    given = [name for name, _ in args.lora or ()]
    if len(given) > 1:
        raise UsageError(
            f"--lora names {' and '.join(given)}, and there is one to talk to; give one of them, "
            "or serve them all with `sterna serve`"
        )
    return given[0] if given else None


def open_engine(args: argparse.Namespace, names: Sequence[str] = ENGINE) -> Engine:
    """Convert and compile what is missing, with progress on stderr, then load.

    `names` are the engine's options among the arguments.
    """
    options = EngineOptions(**given_options(args, names))
    from sterna.engine.engine import Engine

    (located,), draft = find_models(args, [args.model], options)
    return Engine(resolve=lambda name, *_: draft if name else located, options=options)


def find_models(
    args: argparse.Namespace, models: Sequence[str | None], options: EngineOptions
) -> tuple[list[Located], Located]:
    """What engines load: each of the models, and the draft model (without one, a model's own)."""
    from sterna.engine.loader import check_device
    from sterna.local import locate

    check_device(args.device)
    with shown() as report:
        common: dict[str, Any] = {"kv_dtype": options.kv_dtype, "progress": report}
        given: dict[str, Any] = {"quantization": args.quantization, "lora": options.lora}
        found = [locate(model, args.model_lib, args.device, **given, **common) for model in models]
        if options.draft_model:
            return found, locate(options.draft_model, device=args.device, **common)
    return found, found[0]


def prompt_text(given: str | None) -> str:
    """The prompt of `--prompt`, or all of stdin; it must be text, and not nothing.

    One line end at the end of stdin is the shell's, not the prompt's.
    """
    if given is None:
        given = _read_stdin()
        given = given.removesuffix("\n").removesuffix("\r")
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt is not valid UTF-8 (at character {error.start}); send valid UTF-8"
        ) from None
    if not given:
        raise RequestError('the prompt is empty; give one with --prompt "..." or through a pipe')
    return given


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError('there is no input to read a prompt from; give one with --prompt "..."')
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the prompt is not valid UTF-8 (byte {error.start}); send valid UTF-8"
        ) from None
