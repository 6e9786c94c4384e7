"""Operations whose result can dwarf their operands, measured before they run.

In: a `Budget`, the operands, the arguments; out: the arguments to use (iterators made lists), or
`OverBudget`. Covers the operators, string methods and filters that a chat template can reach;
everything else gives a result no larger than a fixed multiple of its operands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sterna.text.budget import MAX_INT_BITS, Budget, OverBudget

Arguments = tuple[Any, ...]
Check = Callable[[Budget, Any, Arguments, Mapping[str, Any]], Arguments]

LONG_NUMBER = re.compile(r"\d{5}")
MAX_PRECISION = 100


def check_binop(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Measure `left operator right`."""
    budget.step()
    if isinstance(left, int) and isinstance(right, int):
        _check_ints(operator, left, right)
    elif operator == "*":
        text, count = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(count, int) and count > 0:
            budget.spend(budget.size(text) * count)
    elif operator == "%" and isinstance(left, str):
        _percent(budget, left, right)
    elif operator == "+":
        budget.spend(budget.size(left) + budget.size(right))


def _check_ints(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * abs(right)
    if bits > MAX_INT_BITS:
        raise OverBudget("it makes a number of thousands of digits")


def _percent(budget: Budget, pattern: str, values: Any) -> None:
    """`%` formats: no width beyond four digits, none taken from an argument."""
    fields = re.findall(r"%[^a-zA-Z%]*", re.sub(r"%\([^)]*\)", "%", pattern))
    if any("*" in field or LONG_NUMBER.search(field) for field in fields):
        raise OverBudget("it formats to an endless width")
    budget.spend(len(pattern) + len(fields) * (10_000 + budget.size(values)))


def _format_method(budget: Budget, owner: str, args: Arguments, kwargs: Any) -> Arguments:
    if LONG_NUMBER.search(owner) or re.search(r"\{[^{}]*\{", owner.replace("{{", "")):
        raise OverBudget("it formats to an endless width")
    budget.spend(len(owner) + owner.count("{") * (10_000 + budget.size([*args, kwargs])))
    return args


def _pad(budget: Budget, owner: str, args: Arguments, kwargs: Any) -> Arguments:
    budget.width(*args[:1], *kwargs.values())
    return args


def _replace_method(budget: Budget, owner: str, args: Arguments, kwargs: Any) -> Arguments:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        budget.spend(len(owner) + owner.count(args[0]) * len(args[1]))
    return args


def _join_method(budget: Budget, owner: str, args: Arguments, kwargs: Any) -> Arguments:
    items, *rest = args or ((),)
    items = _listed(budget, items)
    budget.spend(budget.size(items) + len(owner) * len(items))
    return (items, *rest)


def _listed(budget: Budget, items: Iterable[Any]) -> list[Any]:
    """An iterable as a list, each item paid for."""
    out = []
    for item in items:
        budget.step()
        out.append(item)
    return out


def _pad_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    budget.width(*args[:1], *kwargs.values())
    return (value, *args)


def _replace_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    old, new = _named(args, kwargs, ("old", ""), ("new", ""))
    text = str(value)
    budget.spend(len(text) + text.count(str(old)) * len(str(new)))
    return (value, *args)


def _join_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    (separator,) = _named(args, kwargs, ("d", ""))
    items = _listed(budget, value)
    budget.spend(budget.size(items) + len(str(separator)) * len(items))
    return (items, *args)


def _indent_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    (width,) = _named(args, kwargs, ("width", 4))
    if not isinstance(width, str):
        budget.width(width)
    amount = len(width) if isinstance(width, str) else abs(width)
    budget.spend(len(str(value)) + (len(str(value).splitlines()) + 1) * amount)
    return (value, *args)


def _format_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    _percent(budget, str(value), kwargs or args)
    return (value, *args)


def _batch_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    count, fill = _named(args, kwargs, ("linecount", 1), ("fill_with", None))
    budget.width(count)
    budget.spend(abs(count) * budget.size(fill))
    return (value, *args)


def _slice_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    (count,) = _named(args, kwargs, ("slices", 1))
    budget.width(count)
    return (_listed(budget, value), *args)


def _sum_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    start = _named(args, kwargs, ("attribute", None), ("start", 0))[1]
    if not isinstance(start, int | float):
        raise OverBudget("it adds up things that are not numbers")
    return (value, *args)


def _round_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    (precision,) = _named(args, kwargs, ("precision", 0))
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise OverBudget(f"it rounds to {precision!r} places")
    return (value, *args)


def _tojson_filter(budget: Budget, value: Any, args: Arguments, kwargs: Any) -> Arguments:
    indent, separators = _named(
        args, kwargs, ("ensure_ascii", 0), ("indent", 0), ("separators", ())
    )[1:]
    if isinstance(indent, int):
        budget.width(indent)
    wide = indent if isinstance(indent, int) else len(indent or "")
    glue = sum(len(str(part)) for part in separators or ())
    budget.spend(budget.size(value) * (1 + max(0, wide) + glue))
    return (value, *args)


def _named(args: Arguments, kwargs: Mapping[str, Any], *names: tuple[str, Any]) -> list[Any]:
    """Arguments by position or name, with their defaults."""
    return [
        args[i] if i < len(args) else kwargs.get(name, default)
        for i, (name, default) in enumerate(names)
    ]


METHOD_CHECKS: Mapping[str, Check] = {
    "format": _format_method,
    "format_map": _format_method,
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
    "replace": _replace_method,
    "join": _join_method,
}
FILTER_CHECKS: Mapping[str, Check] = {
    "center": _pad_filter,
    "replace": _replace_filter,
    "join": _join_filter,
    "indent": _indent_filter,
    "format": _format_filter,
    "batch": _batch_filter,
    "slice": _slice_filter,
    "sum": _sum_filter,
    "round": _round_filter,
    "tojson": _tojson_filter,
}
