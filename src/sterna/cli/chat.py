"""`sterna chat`: talk to a model in the terminal, or ask it once through --prompt or a pipe."""

from __future__ import annotations

import argparse
import base64
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from sterna.base.errors import Error, RequestError, UsageError
from sterna.cli.answer import PlainView, meter, remark, view, window_full
from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.commands import Next, is_command, obey
from sterna.cli.conversation import Conversation
from sterna.cli.model import (
    ENGINE,
    add_model_flags,
    asked_model,
    open_engine,
    prompt_text,
    sampling,
)
from sterna.cli.say import harmless, note, one_line, styled, wrapped
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
    parser.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="show the model this image with --prompt; more than once for several",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument(
        "--plain", action="store_true", help="show answers as they come, without rendering Markdown"
    )
    add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options, model = sampling(args), asked_model(args)
    interactive = args.prompt is None and all(_is_terminal(s) for s in (sys.stdin, sys.stdout))
    prompt = None if interactive else prompt_text(args.prompt)
    if args.image and prompt is None:
        raise UsageError("--image goes with one question: give it with --prompt")
    images = [image_url(Path(name)) for name in args.image]
    if prompt is not None and not prompt.strip():
        raise RequestError("the prompt is blank; say something to the model")
    if args.model is not None:
        _refuse_raw_source(args.model)
    with open_engine(args, (*ENGINE, "lora")) as engine:
        if not engine.has_chat_template:
            raise _no_template(args.model)
        conversation = Conversation(engine, options, args.system, model=model)
        if prompt is not None:
            ask_once(conversation, with_images(prompt, images), args.plain)
        else:
            talk(conversation, args.plain)
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


def image_url(path: Path) -> str:
    """A file as the engine takes images; UsageError for one that cannot be read."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"the image {path} cannot be read ({error.strerror}); give the path of a PNG, JPEG, "
            "WEBP or GIF"
        ) from None
    return f"data:image/*;base64,{base64.b64encode(data).decode()}"


def with_images(prompt: str, urls: Sequence[str]) -> str | list[dict[str, Any]]:
    """What a message says: text, or the images and then the text."""
    if not urls:
        return prompt
    shown: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*shown, {"type": "text", "text": prompt}]


def ask_once(
    conversation: Conversation, prompt: str | list[dict[str, Any]], plain: bool = False
) -> None:
    """Print the answer to stdout and nothing else there."""
    with view(plain) as shown:
        turn = conversation.answer(prompt, shown)
    if isinstance(shown, PlainView):
        print()
    if turn.stopped:
        raise KeyboardInterrupt
    if conversation.window_full(turn):
        note(f"sterna: {window_full(conversation)}")


def talk(conversation: Conversation, plain: bool = False) -> None:
    """Take lines from the terminal until /exit or Ctrl-D; Ctrl-C stops an answer, never this."""
    from sterna.cli.terminal import Terminal

    terminal = Terminal(lambda: status(conversation))
    name = styled(one_line(conversation.engine.model_name), "bold", sys.stdout)
    print(f"{name}: write something, or /help\n")
    while (line := terminal.read()) is not None:
        try:
            if not _turn(conversation, line, plain):
                return
        except KeyboardInterrupt:  # between two pieces of work
            print()
        except Error as error:
            print(styled(wrapped(one_line(f"{error}")), "red", sys.stdout))
            if isinstance(error, RequestError) and conversation.messages:
                print("/reset starts a new conversation")
        print()


def status(conversation: Conversation) -> str:
    """The line at the bottom of the screen: how full the window is, and what was set."""
    options = [f"{name}={value}" for name, value in conversation.options.items()]
    form = [] if conversation.form is None else [conversation.form["type"]]
    system = ["system prompt"] if conversation.system else []
    return one_line(" · ".join([meter(conversation), *system, *form, *options]))


def _turn(conversation: Conversation, line: str, plain: bool) -> bool:
    """Answer a line or obey it; False: the user wants to leave."""
    if not line.strip():
        return True
    outcome = obey(line, conversation) if is_command(line) else Next.ANSWER
    if isinstance(outcome, str):
        print(wrapped(harmless(outcome)))
    elif outcome is not Next.LEAVE:
        _answer(conversation, None if outcome is Next.REGENERATE else line, plain)
    return outcome is not Next.LEAVE


def _answer(conversation: Conversation, text: str | None, plain: bool) -> None:
    """Show the answer to `text`, or another one to the last question, and what it took."""
    with view(plain) as shown:
        if text is None:
            turn = conversation.regenerate(shown)
        else:
            turn = conversation.answer(text, shown)
    if isinstance(shown, PlainView):
        print()
    print(styled(wrapped(f"[{remark(conversation, turn)}]"), "dim", sys.stdout))
