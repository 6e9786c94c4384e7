"""A sequence: one growing list of tokens and what of it lies in the cache.

State only. The scheduler moves a sequence between phases; the engine appends what was sampled.
Knows no text and no sampling options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from sterna.engine.pictures import Picture
from sterna.engine.prefix import NO_ADAPTER, Node

GONE = -1  # in `pages`: given back, because a sliding window has left it


class Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being written.

    `number` is the order of arrival. The first `cached` tokens have keys and values in `pages`;
    the first `published` pages are in the prefix cache, the last of them as `node`. `spelling` is
    the prompt as the prefix cache knows it where that is not its tokens: it has `pictures`.
    """

    number: int
    tokens: list[int]  # prompt, then answer
    prompt_length: int
    adapter: int = NO_ADAPTER
    pictures: tuple[Picture, ...] = ()
    spelling: tuple[int, ...] = ()
    phase: Phase = Phase.WAITING
    cached: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int = -1  # of its states, where the model has any; -1 while it does not run
    node: Node | None = None  # None: not (or no longer) in the prefix cache
    published: int = 0
    reused: int | None = None  # prompt tokens found in the prefix cache on first admission
    overtaken: int = 0  # by sequences that arrived later, while there was no room for this one
    draft: list[int] = field(default_factory=list)  # guesses at what follows `tokens`
    drafted: int = 0  # guesses verified, in all
    drafted_right: int = 0  # and how many of them were right

    @property
    def pending(self) -> int:
        """Tokens the model has not seen: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.cached

    @property
    def spelled(self) -> list[int]:
        """All tokens as the prefix cache knows them."""
        if not self.spelling:
            return self.tokens
        return [*self.spelling, *self.tokens[len(self.spelling) :]]

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length
