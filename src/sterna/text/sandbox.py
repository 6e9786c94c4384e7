"""A Jinja environment in which a stranger's template can neither escape nor run away.

In: template source; out: a compiled template whose every loop, macro, call, filter, operator and
literal pays into a `Budget` (budget.py). Beyond Jinja's own immutable sandbox: the syntax tree is
instrumented (instrument.py) before code is made from it, constants are not folded at compile
time, operations whose result may be far larger than their operands are measured first
(amplifiers.py), and methods of builtin types are an allow list. Filters, `tojson`,
`raise_exception`, `strftime_now` and `{% generation %}` behave as in transformers'
apply_chat_template. Does not know messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from sterna.base.errors import TokenizerError
from sterna.text.amplifiers import FILTER_CHECKS, METHOD_CHECKS, check_binop
from sterna.text.budget import ELEMENT, Budget, OverBudget
from sterna.text.instrument import CHARGE, CHARGE_SLICE, TICK, Generation, Instrument

BUDGET = "sterna budget"  # holds a space: no template can write such a name

MAX_SOURCE = 256 << 10
MAX_TOKENS = 30_000  # large published templates have about 5,000; compiling takes 0.1 ms each
MAX_STRFTIME = 256

# Filters no chat template needs whose cost is hard to bound, or that are random.
REMOVED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")

METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold center count endswith find format format_map index isalnum isalpha "
        "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
        "isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
        "zfill".split()
    ),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    float: frozenset({"is_integer"}),
    int: frozenset({"bit_length"}),
}


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`: it does not accept this conversation."""


class TemplateNamespace(Namespace):
    """Jinja's namespace, without underscore names, and open to measurement."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` must stay free as a keyword
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    @property
    def template_attributes(self) -> Mapping[str, Any]:
        """What the namespace holds, for `budget.size`."""
        held: Mapping[str, Any] = object.__getattribute__(self, "_Namespace__attrs")
        return held

    def __getattribute__(self, name: str) -> Any:
        # Jinja's own hides every attribute but two; the property above must stay reachable.
        if name == "template_attributes":
            return object.__getattribute__(self, name)
        return Namespace.__getattribute__(self, name)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold the name {name!r}")


class TemplateDict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """The environment; renderings pass their `Budget` under the name BUDGET."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[Generation, loopcontrols],
        )
        self.filters["tojson"] = tojson
        for name in REMOVED_FILTERS:
            del self.filters[name]
        for name, check in FILTER_CHECKS.items():
            self.filters[name] = _checked_filter(self.filters[name], check)
        self.filters |= {
            TICK: _tick_filter,
            CHARGE: _charge_filter,
            CHARGE_SLICE: _charge_slice_filter,
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: _strftime(clock(), pattern),
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Instrument().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse underscore names, mutation, and builtin methods not on the list."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if not callable(value):
            return True
        allowed = [names for kind, names in METHODS.items() if isinstance(obj, kind)]
        if allowed:
            return any(attr in names for names in allowed)
        return type(obj).__module__ != "builtins"

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Underscore names end the rendering; other refused names are undefined until used."""
        if attribute.startswith("_"):
            raise SecurityError(
                f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe"
            )
        return super().unsafe_undefined(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call from a template; string methods that amplify are measured first."""
        budget = _budget(__context)
        budget.step()
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and (check := METHOD_CHECKS.get(method.__name__)):
            args = check(budget, owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, its result measured before it is made."""
        check_binop(_budget(context), operator, left, right)
        return super().call_binop(context, operator, left, right)


def compile_template(source: str, clock: Callable[[], datetime]) -> jinja2.Template:
    """Compile a chat template; TokenizerError where it is not valid or far too large."""
    if len(source) > MAX_SOURCE:
        raise TokenizerError(
            f"the chat template has {len(source)} characters, at most {MAX_SOURCE} are allowed"
        )
    environment = BudgetedEnvironment(clock)
    try:
        tokens = sum(1 for _ in environment.lex(source))
        if tokens > MAX_TOKENS:
            raise TokenizerError(
                f"the chat template has {tokens} tokens of Jinja, at most {MAX_TOKENS} are allowed"
            )
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the chat template is not valid: {error.message} (line {error.lineno})"
        ) from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverBudget) as error:
        raise TokenizerError(
            f"the chat template cannot be compiled ({type(error).__name__}): it nests too deeply "
            "or holds a number that is too large"
        ) from error


def names_read(source: str) -> frozenset[str]:
    """The names that a template, which compiles, reads from its caller."""
    environment = BudgetedEnvironment(datetime.now)
    return frozenset(find_undeclared_variables(environment.parse(source)))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as transformers has it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


@pass_context
def _tick_filter(context: Context, cost: int) -> bool:
    # Only `map` could be told this filter's name, to call it with something else.
    _budget(context).spend(cost if type(cost) is int else 0)
    return True


@pass_context
def _charge_filter(context: Context, value: Any) -> Any:
    budget = _budget(context)
    if isinstance(value, Iterator) and type(value).__module__ == "builtins":
        return _counted(budget, value)
    budget.spend(budget.size(value))
    return value


@pass_context
def _charge_slice_filter(context: Context, value: Any) -> Any:
    """A slice copies references only: templates slice long conversations in loops."""
    _budget(context).spend(ELEMENT * len(value))
    return value


def _counted(budget: Budget, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        budget.spend(budget.size(item))
        yield item


def _checked_filter(
    original: Callable[..., Any], check: Callable[..., tuple[Any, ...]]
) -> Callable[..., Any]:
    """The filter, with its arguments measured first."""
    kind = getattr(original, "jinja_pass_arg", None)

    @pass_context
    def checked(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        value, *rest = check(_budget(context), value, args, kwargs)
        passed = {"context": context, "eval_context": context.eval_ctx}
        passed["environment"] = context.environment
        first = [passed[kind.name]] if kind is not None else []
        return original(*first, value, *rest, **kwargs)

    return checked


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message)[:500])


def _strftime(now: datetime, pattern: str) -> str:
    if len(pattern) > MAX_STRFTIME:
        raise OverBudget("it formats the time with an endless pattern")
    return now.strftime(pattern)
