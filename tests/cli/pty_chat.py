"""`sterna chat` with a scripted model: `python pty_chat.py ANSWER WINDOW PAUSE [FLAG...]`."""

import sys

from scripted_model import scripted

from sterna.cli import chat
from sterna.cli.main import main

if __name__ == "__main__":
    answer, window, pause, *flags = sys.argv[1:]
    chat.open_engine = lambda args, names: scripted(answer, int(window), pause=float(pause))
    sys.exit(main(["chat", *flags]))
