"""Every option a user can set, declared once: default, help and range sit with the field.

Out come frozen records that are valid by construction: a value out of range raises
RequestError with the field, the value and what is possible. The CLI's flags, the REST fields and
the docs derive from these fields' metadata. Knows no model: what depends on one (token ids in
`logit_bias`, how much cache fits) is checked where the model is known.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from sterna.base.errors import RequestError

MAX_STOPS = 16
MAX_ADAPTERS = 256


class Mode(StrEnum):
    """How much the engine takes for itself; see `limits.plan`."""

    LOCAL = "local"
    INTERACTIVE = "interactive"
    SERVER = "server"


class PrefillMode(StrEnum):
    """Which steps run prompts; see `scheduler`."""

    HYBRID = "hybrid"
    CHUNKED = "chunked"


class Speculative(StrEnum):
    """Who guesses at the next tokens; see `speculative`."""

    OFF = "off"
    NGRAM = "ngram"
    DRAFT = "draft"


class KVDtype(StrEnum):
    """What the KV cache keeps of a key or value."""

    AUTO = "auto"
    F16 = "f16"
    Q8 = "q8"


def _option(
    default: Any, kind: type, help: str, lo: float | None = None, hi: float | None = None
) -> Any:
    """A field with what the CLI, the docs and `_check_field` need; None is allowed if default."""
    return field(default=default, metadata={"kind": kind, "help": help, "lo": lo, "hi": hi})


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How one request's tokens are chosen and when it ends."""

    temperature: float = _option(1.0, float, "0 is greedy; higher is more random", 0)
    top_p: float = _option(1.0, float, "keep the likeliest tokens up to this total mass", 0, 1)
    top_k: int = _option(0, int, "keep this many likeliest tokens (0: all)", 0)
    min_p: float = _option(0.0, float, "drop tokens below this share of the likeliest", 0, 1)
    repetition_penalty: float = _option(
        1.0, float, "divide the logits of tokens seen in prompt or output (1: off)", 0.01, 100
    )
    presence_penalty: float = _option(
        0.0, float, "subtract from the logits of tokens in the output", -2, 2
    )
    frequency_penalty: float = _option(
        0.0, float, "subtract from the logits for each occurrence in the output", -2, 2
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        metadata={"kind": dict, "help": "token id -> added to its logit", "lo": -100, "hi": 100},
    )
    seed: int | None = _option(
        None, int, "same seed, same prompt: same tokens (default: random)", -(2**63), 2**64 - 1
    )
    max_tokens: int | None = _option(
        None, int, "end after this many tokens (default: when the window is full)", 1
    )
    min_tokens: int = _option(0, int, "do not end before this many tokens", 0)
    stop: tuple[str, ...] = field(
        default=(), metadata={"kind": str, "help": "end before any of these strings"}
    )
    ignore_eos: bool = _option(False, bool, "go on after the model says it is done")
    logprobs: bool = _option(False, bool, "return the log probability of each token")
    top_logprobs: int = _option(0, int, "and of this many likeliest tokens at each position", 0, 20)
    n: int = _option(1, int, "how many answers", 1, 128)

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        object.__setattr__(self, "stop", _stops(self.stop))
        _check(self)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=True", "top_logprobs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}",
                "min_tokens",
            )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine allocates when it starts. None: chosen from the mode and the library."""

    mode: Mode | str = field(
        default=Mode.LOCAL,
        metadata={
            "kind": Mode,
            "help": "local: a few users; interactive: one; server: all the library allows",
        },
    )
    max_num_sequence: int | None = _option(None, int, "most sequences in one step", 1)
    max_total_tokens: int | None = _option(None, int, "tokens the KV cache holds in all", 1)
    context_window_size: int | None = _option(None, int, "longest prompt and answer together", 1)
    prefill_chunk_size: int | None = _option(None, int, "most tokens in one step", 1)
    memory: int | None = _option(
        None,
        int,
        "most bytes that models and caches take together (default: nine tenths of what is free)",
        1,
    )
    threads: int | None = _option(None, int, "threads of a CPU device (default: all cores)", 1)
    keep_packed: bool = _option(
        True,
        bool,
        "keep weights as kernels read them and large vocabularies in the cache, for later starts",
    )
    kv_dtype: KVDtype | str = field(
        default=KVDtype.AUTO,
        metadata={
            "kind": KVDtype,
            "help": "what the KV cache keeps: 16 bits a number (f16), or 8 and a scale for each "
            "token and head (q8); auto: what the library was compiled for",
        },
    )
    prefill_mode: PrefillMode | str = field(
        default=PrefillMode.HYBRID,
        metadata={
            "kind": PrefillMode,
            "help": "hybrid: prompts share steps with answers; chunked: they take turns",
        },
    )
    prefix_cache: bool = _option(True, bool, "reuse the cache of earlier prompts that begin alike")
    prefix_cache_dir: str | None = field(
        default=None,
        metadata={"kind": str, "help": "keep that cache in this folder, for the next start"},
    )
    speculative: Speculative | str = field(
        default=Speculative.OFF,
        metadata={
            "kind": Speculative,
            "help": "guess at following tokens and verify them in one step: by what followed the "
            "same words before (ngram), or by a smaller model (draft); answers stay the same",
        },
    )
    draft_model: str | None = field(
        default=None,
        metadata={"kind": str, "help": "the smaller model, for speculative draft"},
    )
    draft_tokens: int = _option(4, int, "most tokens guessed at a time", 1, 31)
    lora: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "kind": dict,
            "help": "an adapter to load beside the model, by the name under which requests ask "
            "for it; as often as there are adapters",
        },
    )
    trace: str | None = field(
        default=None,
        metadata={
            "kind": str,
            "help": "write a trace of the steps to this file at the end, in Chrome's format",
        },
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            kind = option.metadata["kind"]
            if issubclass(kind, StrEnum):
                given = getattr(self, option.name)
                object.__setattr__(self, option.name, _choice(option.name, kind, given))
        object.__setattr__(self, "lora", _adapters(self.lora))
        _check(self)
        if self.prefix_cache_dir is not None and not self.prefix_cache:
            raise RequestError("prefix_cache_dir needs prefix_cache=True")
        if (self.speculative is Speculative.DRAFT) != (self.draft_model is not None):
            raise RequestError(
                f"speculative is '{self.speculative}' and draft_model is {self.draft_model!r}; "
                "speculative 'draft' and a draft_model go together"
            )


def override(defaults: SamplingOptions, given: Mapping[str, Any]) -> SamplingOptions:
    """`defaults` with the caller's values over them; None means "not given", as in JSON.

    RequestError names a keyword that is no option.
    """
    for name in given:
        if name not in SAMPLING_NAMES:
            close = difflib.get_close_matches(name, SAMPLING_NAMES, 1)
            hint = (
                f"did you mean {close[0]}?" if close else f"options are {', '.join(SAMPLING_NAMES)}"
            )
            raise RequestError(f"unknown or unsupported option {name!r}; {hint}", name)
    return replace(defaults, **{name: v for name, v in given.items() if v is not None})


def _choice(name: str, kind: type[StrEnum], value: object) -> StrEnum:
    try:
        return kind(str(value))
    except ValueError:
        possible = ", ".join(choice.value for choice in kind)
        raise RequestError(f"{name} is {value!r}, possible are {possible}") from None


def _check(record: SamplingOptions | EngineOptions) -> None:
    for option in _RANGED[type(record)]:
        value = getattr(record, option.name)
        if value is not option.default:  # most are; and a server checks this for every request
            _check_field(option, value)


SAMPLING_NAMES = tuple(option.name for option in fields(SamplingOptions))
_RANGED: dict[type, tuple[Field[Any], ...]] = {
    record: tuple(o for o in fields(record) if o.metadata["kind"] in (int, float, bool))
    for record in (SamplingOptions, EngineOptions)
}


def _check_field(option: Field[Any], value: Any) -> None:
    kind = option.metadata["kind"]
    accepted = {bool: bool, int: numbers.Integral, float: numbers.Real}[kind]
    fits = type(value) is kind or (
        isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    )
    if not fits or not _in_range(value, option.metadata["lo"], option.metadata["hi"]):
        raise RequestError(
            f"{option.name} is {value!r}, possible is {_possible(option)}", option.name
        )


def _in_range(value: Any, lo: float | None, hi: float | None) -> bool:
    if isinstance(value, bool):
        return True
    return math.isfinite(value) and (lo is None or value >= lo) and (hi is None or value <= hi)


def _possible(option: Field[Any]) -> str:
    kind, lo, hi = (option.metadata[key] for key in ("kind", "lo", "hi"))
    if kind is bool:
        return "True or False"
    noun = "an integer" if kind is int else "a number"
    return f"{noun} of at least {lo}" if hi is None else f"{noun} from {lo} to {hi}"


def _bias(value: object) -> dict[int, float]:
    """Check a map of token ids; JSON's keys are strings, so "12" is taken for 12."""
    if not isinstance(value, Mapping):
        raise RequestError(
            f"logit_bias is {value!r}, possible is a map of token id to number", "logit_bias"
        )
    bias: dict[int, float] = {}
    for key, number in value.items():
        real = isinstance(number, numbers.Real) and not isinstance(number, bool)
        if not real or not _in_range(number, -100, 100):
            raise RequestError(
                f"logit_bias[{key!r}] is {number!r}, possible is -100 to 100", "logit_bias"
            )
        bias[_token_id(key)] = float(number)
    return bias


def _token_id(key: object) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
        return int(key)
    if isinstance(key, numbers.Integral) and not isinstance(key, bool) and int(key) >= 0:
        return int(key)
    raise RequestError(f"logit_bias has the key {key!r}, possible are token ids", "logit_bias")


def _adapters(value: object) -> dict[str, str]:
    """Folders of adapters by name; pairs stand for a map."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(_is_named(pair) for pair in pairs):
        raise RequestError(f"lora is {value!r}, possible is a map of names to folders", "lora")
    found = {name: str(folder) for name, folder in pairs}
    if len(found) < len(pairs):
        raise RequestError("lora names two adapters alike; give each a name of its own", "lora")
    if len(found) > MAX_ADAPTERS:
        raise RequestError(
            f"lora has {len(found)} adapters, possible are up to {MAX_ADAPTERS}", "lora"
        )
    return found


def _is_named(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and bool(pair[0])


def _stops(value: object) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(
            f"stop is {value!r}, possible is one or more strings, none of them empty", "stop"
        )
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop has {len(stops)} strings, possible are up to {MAX_STOPS}", "stop")
    return tuple(stops)
