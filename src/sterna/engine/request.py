"""A sequence: one growing list of tokens and what of it lies in the cache.

State only. The scheduler moves a sequence between phases; the engine appends what was sampled.
Knows no text and no sampling options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto


class Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being written. Several answers to one prompt are sequences with one `leader`.

    `number` is the order of arrival. The first `cached` tokens have keys and values in `pages`.
    """

    number: int
    tokens: list[int]  # prompt, then answer
    prompt_length: int
    leader: Sequence | None = None  # the sequence whose prompt pages this one may share
    phase: Phase = Phase.WAITING
    cached: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens the model has not seen: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.cached

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length
