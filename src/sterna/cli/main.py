"""`sterna VERB ...`: arguments in, an exit status out; every failure is one sentence on stderr.

0 done, 1 it failed, 2 the command makes no sense, 130 stopped with Ctrl-C, 141 nobody reads the
output. STERNA_DEBUG=1 shows the traceback behind the sentence.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from sterna.base.errors import Error, UsageError
from sterna.base.version import __version__
from sterna.cli.arguments import Parser, check_options, closest
from sterna.cli.say import one_line

VERBS = {  # the module of each, imported when it is asked for: a verb need not wait for the others
    "chat": "chat",
    "generate": "generate",
    "serve": "serve",
    "bench": "bench",
    "convert_weight": "convert_weight",
    "gen_config": "gen_config",
    "compile": "compile",
    "tune": "tune",
    "inspect": "inspect",
    "devices": "devices",
    "list": "list_models",
    "rm": "rm",
    "cache": "cache",
}

_EXAMPLES = """\
examples:
  sterna chat                                talk to the demo model
  sterna chat HF://user/repo                 download, quantize, compile, talk
  sterna serve ./dist/M                      answer requests as OpenAI's API does
  sterna convert_weight --source ./M-hf --quantization q4f16_1 --output ./dist/M
  sterna gen_config --source ./M-hf --quantization q4f16_1 --output ./dist/M
  sterna compile --model ./dist/M --target cpu --output ./dist/libs/M-cpu.so
  sterna chat ./dist/M --model-lib ./dist/libs/M-cpu.so

`sterna VERB --help` says more. STERNA_DEBUG=1 shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    _let_anything_print()
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except UsageError as error:
        return _fail(error, str(error), 2)
    except Error as error:
        return _fail(error, str(error), 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(error, f"{error.strerror or error}{where}", 1)
    except MemoryError as error:
        return _fail(error, "this machine has too little memory for that", 1)
    except Exception as error:
        sentence = (
            f"a mistake in Sterna itself ({type(error).__name__}: {error}); "
            "please report it, with what STERNA_DEBUG=1 shows"
        )
        return _fail(error, sentence, 1)


def _run(argv: list[str]) -> int:
    if not argv:
        _parser(None).print_help()
        return 0
    verb = _verb(argv[0])
    parser = _parser(verb)
    check_options(parser, verb, argv)
    args = parser.parse_args(argv if verb is None else [verb, *argv[1:]])
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _verb(word: str) -> str | None:
    """The verb that the first word names, spelled either way; None for an option."""
    if word.startswith("-"):
        return None
    verb = word.replace("-", "_")
    if verb not in VERBS:
        raise UsageError(f"there is no command {word!r}; {closest(verb, VERBS)}")
    return verb


def _parser(verb: str | None) -> Parser:
    """The parser of everything, or only of the verb that was asked for: that is quicker."""
    parser = Parser(
        prog="sterna",
        description="Compile a language model once and run it on every device.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"sterna {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="commands", required=True)
    for name, module in VERBS.items():
        if verb in (None, name):
            import_module(f"sterna.cli.{module}").add(verbs)
    return parser


def _fail(error: BaseException, sentence: str, code: int) -> int:
    if os.environ.get("STERNA_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"sterna: {one_line(sentence)}", file=sys.stderr)
    return code


def _let_anything_print() -> None:
    """Where the terminal's encoding lacks a character, write an escape: no answer fails for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Point stdout nowhere, or Python would complain again when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file, as in a test
        return
