"""`sterna chat`: talk to a model in the terminal, or ask it once through --prompt or a pipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TextIO

from sterna.base.errors import Error, RequestError
from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.commands import is_command, obey
from sterna.cli.conversation import Conversation, Turn
from sterna.cli.model import add_model_flags, open_engine, prompt_text, sampling
from sterna.cli.say import harmless, note, one_line, styled
from sterna.cli.source import CONFIG

_EXAMPLE = """\
  sterna chat                                  the demo model
  sterna chat ./dist/M --model-lib ./dist/libs/M-cpu.so
  sterna chat HF://user/repo --temperature 0.7
  sterna chat --prompt "What is 12 + 30?"      one answer, and nothing else"""


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "chat",
        "talk to a model",
        "Talk to a model. A plain Hugging Face folder or HF://user/repo is quantized and compiled "
        "into the cache first.",
        _EXAMPLE,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model folder or HF://user/repo (default: the demo model)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this, print the answer and end")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options = sampling(args)
    interactive = args.prompt is None and all(_is_terminal(s) for s in (sys.stdin, sys.stdout))
    prompt = None if interactive else prompt_text(args.prompt)
    if prompt is not None and not prompt.strip():
        raise RequestError("the prompt is blank; say something to the model")
    if args.model is not None:
        _refuse_raw_source(args.model)
    with open_engine(args) as engine:
        if not engine.has_chat_template:
            raise _no_template(args.model)
        conversation = Conversation(engine, options, args.system)
        if prompt is not None:
            ask_once(conversation, prompt)
        else:
            talk(conversation)
    return 0


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None: started without one


def _refuse_raw_source(model: str) -> None:
    """Say it before a folder is converted in vain: a source without a chat template cannot chat."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
        from sterna.text.chat_template import ChatTemplate

        if ChatTemplate.load(folder) is None:
            raise _no_template(model)


def _no_template(model: str | None) -> RequestError:
    shown = shlex.quote(model) if model else "MODEL"
    return RequestError(
        f"{model or 'the model'} has no chat template, so it cannot chat; "
        f'let it continue a text instead: sterna generate {shown} --prompt "..."'
    )


def ask_once(conversation: Conversation, prompt: str) -> None:
    """Print the answer to stdout and nothing else there."""
    turn = conversation.answer(prompt, _write)
    print()
    if turn.stopped:
        raise KeyboardInterrupt
    if conversation.window_full(turn):
        note(f"sterna: {_window_full(conversation)}")


def talk(conversation: Conversation) -> None:
    """Take lines from the terminal until /exit or Ctrl-D."""
    from sterna.cli.terminal import Terminal

    terminal = Terminal()
    print(
        f"{styled(one_line(conversation.engine.model_name), 'bold', sys.stdout)}: "
        "write something, or /help"
    )
    while (line := terminal.read()) is not None:
        try:
            if not _turn(conversation, line):
                return
        except Error as error:
            print(styled(one_line(f"{error}"), "red", sys.stdout))
            if isinstance(error, RequestError) and conversation.messages:
                print("/reset starts a new conversation")


def _turn(conversation: Conversation, line: str) -> bool:
    """Answer a line or obey it; False: the user wants to leave."""
    if not line.strip():
        return True
    if is_command(line):
        reply = obey(line, conversation)
        if reply is not None:
            print(harmless(reply))
        return reply is not None
    turn = conversation.answer(line, _write)
    print()
    print(styled(remark(conversation, turn), "dim", sys.stdout))
    return True


def remark(conversation: Conversation, turn: Turn) -> str:
    """The line below an answer: its length and speed, and why it ended if not by itself."""
    if turn.stopped:
        return "[stopped]"
    parts = []
    if turn.usage and turn.timings:
        parts.append(
            f"{turn.usage.completion_tokens} tokens, "
            f"{turn.timings.decode_tokens_per_s:.1f} tokens/s, "
            f"first after {turn.timings.time_to_first_token_s:.2f} s"
        )
    if conversation.window_full(turn):
        parts.append(f"{_window_full(conversation)}; /reset starts a new conversation")
    elif turn.finish_reason == "length":
        parts.append("cut off at max_tokens")
    return f"[{'; '.join(parts)}]"


def _window_full(conversation: Conversation) -> str:
    return (
        f"the context window of {conversation.engine.context_window} tokens is full, "
        "the answer ends here"
    )


def _write(text: str) -> None:
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
