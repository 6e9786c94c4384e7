"""How much work and memory one rendering of a chat template may use.

In: sizes and steps reported while a template runs; out: nothing, or `OverBudget`. Works by
counting, and by the clock for what counting misses, so it runs in any thread and needs no signal.
Every value a template makes is measured as if shared parts were copies, so a template cannot
build a small graph with a huge text. Does not know Jinja.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_STEPS = 1_000_000
MAX_CHARACTERS = 16_000_000
INPUT_COPIES = 128  # a template may copy what the caller gave this often
MAX_SECONDS = 5.0
MAX_DEPTH = 64
ELEMENT = 8  # characters that an element of a list weighs, at depth 1
MAX_INT_BITS = 4096
MAX_WIDTH = 10_000  # of padding and number formats


class OverBudget(Exception):
    """A template asked for more steps, memory or time than any real one needs."""


@dataclass(slots=True)
class Budget:
    """What is left. One object a rendering."""

    characters: int = MAX_CHARACTERS
    steps: int = MAX_STEPS
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def step(self) -> None:
        """Pay for one iteration, call or value."""
        self.steps -= 1
        if self.steps < 0:
            raise OverBudget(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise OverBudget(f"it takes longer than {MAX_SECONDS:g} seconds")

    def spend(self, characters: int) -> None:
        """Pay for memory, before or just after it is used."""
        self.step()
        self.characters -= max(0, characters)
        if self.characters < 0:
            raise OverBudget("it makes more text than any conversation needs")

    def size(self, value: Any) -> int:
        """Measure a value against what is left."""
        return size(value, self.characters)

    def width(self, *widths: object) -> None:
        """Check numbers that say how wide something is to be padded."""
        for width in widths:
            if not isinstance(width, int) or abs(width) > MAX_WIDTH:
                raise OverBudget(f"it pads to a width of {width!r}, at most {MAX_WIDTH} is allowed")


def size(value: Any, limit: float = float("inf")) -> int:
    """Characters and elements in a value of JSON types, shared parts counted each time.

    An element weighs its depth, for indented JSON does. Raises OverBudget beyond `limit`.
    """
    total, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        total += ELEMENT * depth
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            stack += [(part, depth + 1) for entry in item.items() for part in entry]
        elif isinstance(item, list | tuple | set | frozenset):
            stack += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and item.bit_length() > MAX_INT_BITS:
            raise OverBudget("it makes a number of thousands of digits")
        elif hasattr(type(item), "template_attributes"):  # sandbox.TemplateNamespace
            stack.append((item.template_attributes, depth))
        if total > limit or depth > MAX_DEPTH:
            raise OverBudget("it makes a value too large or too deep for any conversation")
    return total
