"""argparse as Sterna wants it: mistakes are UsageErrors with a suggestion, flags come from options.

A dataclass of options (each field with a kind and a help text in its metadata) becomes flags, and
what the user gave becomes keywords again. Ranges are the dataclass's own business.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, NoReturn

from sterna.base.errors import UsageError

DEVICE_HELP = "where to run; null answers without a model, to test applications (default: auto)"

Group = argparse._ActionsContainer  # a parser, or a titled group of its flags
Subparsers = Any  # argparse keeps the type of add_subparsers() to itself


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and leaves room for long flags beside their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and raises where argparse would exit."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", _Formatter)
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (a value that begins with - is written --option=VALUE)"
        raise UsageError(f"{message}; see `{self.prog} --help`")


def add_verb(verbs: Subparsers, name: str, help: str, description: str, example: str) -> Parser:
    """A verb's own parser; `example` ends its help."""
    parser: Parser = verbs.add_parser(
        name, help=help, description=description, epilog=f"example:\n{example}"
    )
    return parser


def check_options(parser: argparse.ArgumentParser, verb: str | None, argv: Sequence[str]) -> None:
    """UsageError for an unknown flag, before argparse complains of what is missing instead."""
    known = _flags(parser) if verb is None else _flags(_verb_parser(parser, verb))
    for word in argv[0 if verb is None else 1 :]:
        if word == "--":
            return
        flag = word.partition("=")[0]
        if flag.startswith("--") and " " not in flag and flag not in known:
            command = "sterna" if verb is None else f"sterna {verb}"
            raise UsageError(f"`{command}` has no option {flag}; {closest(flag, known)}")


def closest(word: str, known: Collection[str]) -> str:
    """A hint: the nearest of the known words, else all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"possible are {', '.join(known)}"


def add_option_flags(group: Group, record: type, names: Iterable[str]) -> None:
    """Add `--top-p` and so on for these fields of a dataclass of options."""
    options = {option.name: option for option in fields(record)}
    for name in names:
        option = options[name]
        _add_flag(group, name, option.metadata["kind"], option.metadata["help"], option.default)


def given_options(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What the user gave of these options, by name."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def number(kind: type) -> Any:
    """A reader of flags for argparse: its message names what was found."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None

    return read


def pair(text: str) -> tuple[str, str]:
    """A reader of NAME=VALUE for argparse."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=PATH")
    return name, value


def _add_flag(group: Group, name: str, kind: type, help: str, default: Any) -> None:
    flag, help = f"--{name.replace('_', '-')}", help.replace("%", "%%")
    if kind is dict:
        group.add_argument(
            flag, dest=name, action="append", type=pair, metavar="NAME=PATH", help=help
        )
    elif kind is bool and default:
        help = f"do not {help}"
        group.add_argument(
            f"--no-{flag[2:]}", dest=name, action="store_const", const=False, help=help
        )
    elif kind is bool:
        group.add_argument(flag, dest=name, action="store_const", const=True, help=help)
    elif issubclass(kind, Enum):
        choices = [member.value for member in kind]
        group.add_argument(flag, dest=name, choices=choices, default=None, help=help)
    elif isinstance(default, int | float) or kind in (int, float):
        metavar = "N" if kind is int else "X"
        group.add_argument(flag, dest=name, type=number(kind), metavar=metavar, help=help)
    elif default is None:
        group.add_argument(flag, dest=name, metavar="TEXT", help=help)
    else:  # texts, as many as the user likes
        group.add_argument(flag, dest=name, action="append", metavar="TEXT", help=help)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [
        flag
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    ]


def _verb_parser(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: argparse.ArgumentParser = action.choices[verb]
            return found
    raise AssertionError("the parser has no verbs")
