"""The algebra of `simplify`, as text: one rule a line, `pattern -> replacement [if condition]`.

x y z stand for any expression, the same one each time; c0 c1 c2 c3 for constants. A sum in a
pattern is matched against the collected terms of the subject in any order: `x * c0` takes every
term divisible by c0, and the last bare wildcard takes what is left, possibly nothing. Conditions
on wildcards must follow from their bounds. Sections say for which operands a rule holds:

    exact    integers; the sums inside are proven not to wrap
    bits     integers of any type, wrapping or not
    float    only what holds for every float, -0.0 and NaN included
    logic    truth values, and select of anything

Collecting like terms, folding constants and deciding by bounds are not here: see `simplify`.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = """
[exact]
(x % c0) * c1 + (x // c0) * c2 + y        -> x * c1 + y                    if c2 == c0 * c1
(x % c0) * c1 + (x // c0 % c3) * c2 + y   -> x % (c0 * c3) * c1 + y        if c2 == c0 * c1 and c0 > 0 and c3 > 0
(x // c0) * c1 + x + y                    -> x % c0 + y                    if c1 == -c0
(x * c0 + y) // c0                        -> x + y // c0                   if c0 > 0
(x * c1 + y) // c0                        -> x // (c0 // c1)               if c0 % c1 == 0 and c0 > 0 and 0 <= y < c1
(x // c1 + c2) // c0                      -> (x + c2 * c1) // (c1 * c0)    if c0 > 0 and c1 > 0
(x // c1) // c0                           -> x // (c1 * c0)                if c0 > 0 and c1 > 0
(x % c1) // c0                            -> x // c0 % (c1 // c0)          if c0 > 0 and c1 > 0 and c1 % c0 == 0
x % c0                                    -> x                             if 0 <= x < c0
(x * c0 + y) % c0                         -> y % c0                        if c0 > 0
((x % c1) * c2 + y) % c0                  -> (x * c2 + y) % c0             if c0 > 0 and c1 > 0 and c1 * c2 % c0 == 0
(x * c1 + y) % c0                         -> x % (c0 // c1) * c1 + y       if c0 % c1 == 0 and c0 > 0 and 0 <= y < c1
min(min(x, c0), c1)                       -> min(x, min(c0, c1))
max(max(x, c0), c1)                       -> max(x, max(c0, c1))
min(min(x, y), x)                         -> min(x, y)
max(max(x, y), x)                         -> max(x, y)
min(max(x, y), x)                         -> x
max(min(x, y), x)                         -> x
max(min(x, c0), c1)                       -> min(max(x, c1), c0)           if c1 < c0

[bits]
x - x                 -> 0
x + 0                 -> x
x - 0                 -> x
x * 1                 -> x
x * 0                 -> 0
x // 1                -> x
x % 1                 -> 0
min(x, x)             -> x
max(x, x)             -> x
x & x                 -> x
x | x                 -> x
x ^ x                 -> 0
x & 0                 -> 0
x | 0                 -> x
x ^ 0                 -> x
x << 0                -> x
x >> 0                -> x
(x & c0) & c1         -> x & (c0 & c1)
(x | c0) | c1         -> x | (c0 | c1)
(x ^ c0) ^ c1         -> x ^ (c0 ^ c1)
x & c0                -> x                if c0 & (c0 + 1) == 0 and 0 <= x <= c0
(x >> c0) >> c1       -> x >> (c0 + c1)   if c0 >= 0 and c1 >= 0 and c0 + c1 < bits
(x >> c0) & c1        -> x >> c0          if c1 & (c1 + 1) == 0 and 0 <= c0 < bits and 0 <= x <= (c1 << c0)
~(~x)                 -> x
-(-x)                 -> x
x == x                -> True
x <= x                -> True
x != x                -> False
x < x                 -> False

[float]
x * 1.0               -> x
x / 1.0               -> x
x - 0.0               -> x
x + -0.0              -> x
-(-x)                 -> x
min(x, x)             -> x
max(x, x)             -> x
fma(x, 1.0, y)        -> x + y
fma(1.0, x, y)        -> x + y
fma(x, y, -0.0)       -> x * y

[logic]
logical_and(x, True)      -> x
logical_and(x, False)     -> False
logical_and(x, x)         -> x
logical_or(x, True)       -> True
logical_or(x, False)      -> x
logical_or(x, x)          -> x
logical_not(True)         -> False
logical_not(False)        -> True
logical_not(logical_not(x)) -> x
logical_not(x < y)        -> y <= x       if integer(x)
logical_not(x <= y)       -> y < x        if integer(x)
logical_not(x == y)       -> x != y
logical_not(x != y)       -> x == y
select(True, x, y)        -> x
select(False, x, y)       -> y
select(x, y, y)           -> y
select(x, True, False)    -> x
select(x, False, True)    -> logical_not(x)
select(logical_not(x), y, z) -> select(x, z, y)
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table."""

    section: str
    pattern: str
    replacement: str
    condition: str

    def __str__(self) -> str:
        tail = f" if {self.condition}" if self.condition else ""
        return f"{self.pattern} -> {self.replacement}{tail}"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a table, in order."""
    rules, section = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            section = line.strip("[]")
            continue
        pattern, rest = line.split(" -> ")
        replacement, _, condition = rest.partition(" if ")
        rules.append(Rule(section, pattern.strip(), replacement.strip(), condition.strip()))
    return tuple(rules)


RULES = parse_rules(TABLE)
