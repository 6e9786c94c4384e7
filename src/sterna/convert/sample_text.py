"""Documents that conversion computes: the user's text, or a few lines that come along.

In: a folder's tokenizer and perhaps a text file. Out: documents as token ids, of bounded length
and number. The lines that come along are of several kinds, and fixed, so that receipts compare.
"""

from __future__ import annotations

from pathlib import Path

from sterna.base.errors import TokenizerError, UsageError
from sterna.checkpoint.config import read_bytes
from sterna.text.tokenizer import Tokenizer

DOCUMENT_TOKENS = 256
MAX_TEXT_BYTES = 64 << 20
_LEAST_TOKENS = 2

PROMPTS = (
    "The lighthouse keeper climbed the stairs every evening at dusk. He lit the lamp, wrote the "
    "weather into his book, and watched the ships go by until he could no longer tell the sea "
    "from the sky. One night a small boat came in without any light at all.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower "
    "there. This is why beans take longer to cook in the Alps than in Naples: although the pot "
    "bubbles, what is in it is not as hot.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n\n\nprint(mean([1, 2, 3, 4]))\n",
    "Question: A train leaves at 9:40 and arrives at 12:05. How long does it take?\n"
    "Answer: From 9:40 to 12:05 are two hours and twenty-five minutes.",
)


def prompts(folder: Path, vocabulary: int) -> list[list[int]]:
    """The lines that come along as token ids; TokenizerError where the folder's cannot say them."""
    tokenizer = Tokenizer.load(folder)
    return _checked([tokenizer.encode(text)[:DOCUMENT_TOKENS] for text in PROMPTS], vocabulary)


def documents(path: Path, folder: Path, vocabulary: int, most_tokens: int) -> list[list[int]]:
    """The start of a text file cut into documents of DOCUMENT_TOKENS.

    Raises UsageError for a text that is not UTF-8 or too short, CheckpointError and UnsafeFile for
    a file that cannot be read.
    """
    data = read_bytes(path, MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    # No token stands for more than a few dozen characters, so this is more than enough of them.
    tokens = Tokenizer.load(folder).encode(text[: most_tokens * 16])[:most_tokens]
    found = [tokens[i : i + DOCUMENT_TOKENS] for i in range(0, len(tokens), DOCUMENT_TOKENS)]
    found = [document for document in found if len(document) >= _LEAST_TOKENS]
    if sum(map(len, found)) < DOCUMENT_TOKENS:
        raise UsageError(
            f"{path} has {sum(map(len, found))} tokens of this model; calibration needs at least "
            f"{DOCUMENT_TOKENS}, and gets better with some thousands"
        )
    return _checked(found, vocabulary)


def _checked(found: list[list[int]], vocabulary: int) -> list[list[int]]:
    highest = max((token for document in found for token in document), default=-1)
    if not 0 <= highest < vocabulary:
        raise TokenizerError(
            f"the tokenizer gives the id {highest} for plain text, but the model has "
            f"{vocabulary} tokens: they belong to different models"
        )
    return found
