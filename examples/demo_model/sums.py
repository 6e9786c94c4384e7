"""Sums below 100: questions in many phrasings, the one form of the answer, and the held-out set.

Both numbers lie in 0..99; differences may be negative. A pair is held out together with its mirror
image (a + b with b + a, a - b with b - a), so no held-out answer follows from a trained one.
"""

import random
from dataclasses import dataclass
from zlib import crc32

LIMIT = 100
_HELD_OUT_SHARE = 0.1

_PLUS = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a} plus {b}",
    "What is {a} plus {b}?", "Compute {a} + {b}.", "Add {a} and {b}.", "How much is {a} + {b}?",
    "Calculate {a} plus {b}.", "What's {a}+{b}?", "Can you add {a} and {b}?", "{a} + {b} =",
    "What is the sum of {a} and {b}?", "Please compute {a} + {b}.", "And {a} + {b}?",
    "Solve {a} + {b}.", "Can you tell me what {a} + {b} is?",
)  # fmt: skip
_MINUS = (
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a} minus {b}",
    "What is {a} minus {b}?", "Compute {a} - {b}.", "Subtract {b} from {a}.",
    "How much is {a} - {b}?", "Calculate {a} minus {b}.", "What's {a}-{b}?",
    "Can you subtract {b} from {a}?", "{a} - {b} =", "What is {a} take away {b}?",
    "Please compute {a} - {b}.", "And {a} - {b}?", "Solve {a} - {b}.",
    "Can you tell me what {a} - {b} is?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sum:
    """`a + b` or `a - b`, by `sign`."""

    a: int
    sign: str
    b: int

    @property
    def answer(self) -> str:
        """The sum and its result, as the model is to say it: `23 + 45 = 68.`"""
        value = self.a + self.b if self.sign == "+" else self.a - self.b
        return f"{self.a} {self.sign} {self.b} = {value}."

    @property
    def held_out(self) -> bool:
        """Whether training must never see this sum; settled by a checksum, not by chance."""
        key = f"{min(self.a, self.b)} {self.sign} {max(self.a, self.b)}"
        return crc32(key.encode()) < _HELD_OUT_SHARE * 2**32


def all_held_out() -> list[Sum]:
    """Every sum that training never sees, in order."""
    numbers = range(LIMIT)
    every = (Sum(a, sign, b) for sign in "+-" for a in numbers for b in numbers)
    return [sum_ for sum_ in every if sum_.held_out]


def draw(random_: random.Random) -> Sum:
    """A random sum to train on; three differences of four are not negative."""
    while True:
        a, b = random_.randrange(LIMIT), random_.randrange(LIMIT)
        sign = random_.choice("+-")
        if sign == "-" and a < b and random_.random() < 0.5:
            a, b = b, a
        drawn = Sum(a, sign, b)
        if not drawn.held_out:
            return drawn


def phrasings(sum_: Sum) -> list[str]:
    """Every way to ask for `sum_`."""
    forms = _PLUS if sum_.sign == "+" else _MINUS
    return [form.format(a=sum_.a, b=sum_.b) for form in forms]
