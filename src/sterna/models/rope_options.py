"""From the rope keys of a config to `RopeOptions`, strictly.

In: a Hugging Face `config.json` as a dict, in the older form (`rope_theta` and `rope_scaling`, its
type under "type" or "rope_type") or as transformers 5 writes it (`rope_parameters`). Out: one
`RopeOptions`. Nothing is passed over: a key that would not change the frequencies as it says is an
error, and so are two keys that contradict each other. It does not know models or arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, cast

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.models.rope_scaling import DEFAULT_THETA, RopeOptions, RopeType

Section = Mapping[str, object]

# The keys each type reads, besides its own name, theta and a whole-head `partial_rotary_factor`.
KEYS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor", "original_max_position_embeddings"),
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "finetuned",  # a remark of the YaRN authors' own files; no implementation reads it
        ),
        "llama3": (
            "factor",
            "original_max_position_embeddings",
            "low_freq_factor",
            "high_freq_factor",
        ),
        "longrope": (
            "short_factor",
            "long_factor",
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
        ),
    }
)
LARGEST: Final = 1e12  # far above any real value, and products of two stay finite in float32
SHARED_KEYS: Final = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
OLD_TYPES: Final = MappingProxyType({"su": "longrope"})  # what the first files called a type
MOST_FACTORS: Final = 4096
USUAL_SECTIONS: Final = (16, 24, 24)


def rope_options(
    config: Section, partial: float | None = None, *, theta: float = DEFAULT_THETA
) -> RopeOptions:
    """Read the rope keys of a `config.json`.

    `partial` is the part of a head that a family rotates where `partial_rotary_factor` does not
    say; None for a family that rotates whole heads and nothing else. `theta` is its usual base.
    Raises UnsupportedModel for a type or key outside `KEYS`, CheckpointError for a value of the
    wrong type or range, and where two keys of the file contradict each other.
    """
    names = [
        key for key in ("rope_parameters", "rope_scaling") if config.get(key) not in (None, {})
    ]
    sections = [(_section(config, name), name) for name in names] or [({}, "rope_scaling")]
    found = [
        replace(
            _read(config, section, name, theta), partial=_partial(config, section, name, partial)
        )
        for section, name in sections
    ]
    if found[0] != found[-1]:
        raise CheckpointError(
            "config.json has both rope_parameters and rope_scaling, and they describe different"
            " rotary embeddings; remove the one that is wrong."
        )
    return found[0]


def multimodal(config: Section) -> tuple[Section, tuple[int, ...]]:
    """The config of a model whose tokens have positions on three axes, with plain rope keys.

    And its `mrope_section`: how many pairs turn by the position in time, in height and in width.
    """
    plain, found = dict(config), set()
    for name in ("rope_parameters", "rope_scaling"):
        section = config.get(name)
        if not isinstance(section, Mapping):
            continue
        if (given := section.get("mrope_section")) is not None:
            right = isinstance(given, list | tuple) and len(given) == len(USUAL_SECTIONS)
            if not right or not all(type(size) is int and 0 <= size < 2**31 for size in given):
                raise _wrong(f"{name}.mrope_section", given, "three whole numbers")
            found.add(tuple(given))
        plain[name] = _without_axes(section, "mrope_section")
    if len(found) > 1:
        raise CheckpointError("rope_parameters and rope_scaling have different mrope_section")
    return plain, found.pop() if found else USUAL_SECTIONS


def on_one_axis(config: Section) -> Section:
    """The config of such a model as texts see it: their positions on all axes are the same.

    So it does not matter which pairs turn by which.
    """
    plain = dict(config)
    for name in ("rope_parameters", "rope_scaling"):
        section = config.get(name)
        if isinstance(section, Mapping):
            plain[name] = _without_axes(section, "mrope_section", "mrope_interleaved")
    return plain


def _without_axes(section: Section, *keys: str) -> Section:
    """Rope keys without those, and with the type that is left then."""
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value
        for key, value in section.items()
        if key not in keys
    }


def of_layers(config: Section, kind: str) -> Section:
    """The config as layers of one kind see it, where rope_parameters holds a section for each."""
    sections = config.get("rope_parameters")
    if not isinstance(sections, Mapping) or not any(
        isinstance(section, Mapping) for section in sections.values()
    ):
        return config
    if kind not in sections:
        raise CheckpointError(
            f"rope_parameters in config.json lacks {kind!r}; it has {_shown(list(sections))}"
        )
    return {**config, "rope_parameters": sections[kind]}


def _read(config: Section, section: Section, name: str, usual: float) -> RopeOptions:
    rope_type = _rope_type(section, name)
    unknown = sorted(set(section) - set(SHARED_KEYS) - set(KEYS[rope_type]))
    if unknown:
        known = ", ".join(("rope_theta", *KEYS[rope_type]))
        raise UnsupportedModel(
            f"{name} in config.json has {_shown(unknown[0])}, which rope type"
            f" {rope_type!r} does not read; it reads {known}."
        )
    theta = _theta(config, section, name) or usual
    if rope_type == "default":
        return RopeOptions(theta=theta)
    if rope_type == "linear":
        factor = _number(section, name, "factor", least=1.0)
        return RopeOptions(type="linear", theta=theta, factor=factor)
    length = _original_length(config, section, name, rope_type)
    if rope_type == "dynamic":
        factor = _number(section, name, "factor", least=1.0)
        return RopeOptions(type="dynamic", theta=theta, factor=factor, original_length=length)
    if rope_type == "llama3":
        return _read_llama3(section, name, theta, length)
    if rope_type == "longrope":
        return _read_longrope(config, section, name, theta, length)
    return _read_yarn(config, section, name, theta, length)


def _read_llama3(section: Section, name: str, theta: float, length: int) -> RopeOptions:
    low = _number(section, name, "low_freq_factor", above=0.0)
    high = _number(section, name, "high_freq_factor", above=0.0)
    if high < low:
        raise CheckpointError(
            f"{name}.high_freq_factor in config.json is {high:g}; it must not be below"
            f" low_freq_factor, which is {low:g}."
        )
    return RopeOptions(
        type="llama3",
        theta=theta,
        factor=_number(section, name, "factor", least=1.0),
        original_length=length,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_longrope(
    config: Section, section: Section, name: str, theta: float, length: int
) -> RopeOptions:
    factor = _optional(section, name, "factor", above=0.0) or _yarn_factor(config, length)
    scaling = _optional(section, name, "attention_factor", above=0.0)
    if scaling is None:
        grown = factor > 1.0 and length > 1
        scaling = math.sqrt(1.0 + math.log(factor) / math.log(length)) if grown else 1.0
    return RopeOptions(
        type="longrope",
        theta=theta,
        factor=factor,
        original_length=length,
        attention_factor=scaling,
        short_factor=_factors(section, name, "short_factor"),
        long_factor=_factors(section, name, "long_factor"),
    )


def _factors(section: Section, name: str, key: str) -> tuple[float, ...]:
    given = section.get(key)
    if not isinstance(given, list | tuple) or not 0 < len(given) <= MOST_FACTORS:
        raise _wrong(f"{name}.{key}", given, "a list of numbers")
    each = (_number({key: value}, name, key, above=0.0) for value in given)
    return tuple(each)


def _read_yarn(
    config: Section, section: Section, name: str, theta: float, length: int
) -> RopeOptions:
    factor = _optional(section, name, "factor", least=1.0)
    if factor is None:
        factor = _yarn_factor(config, length)
    fast = _optional(section, name, "beta_fast", above=0.0) or 32.0
    slow = _optional(section, name, "beta_slow", above=0.0) or 1.0
    if fast < slow:
        raise CheckpointError(
            f"{name}.beta_fast in config.json is {fast:g}; it must be at least beta_slow,"
            f" which is {slow:g}."
        )
    truncate = section.get("truncate", True)
    if not isinstance(truncate, bool):
        raise _wrong(f"{name}.truncate", truncate, "true or false")
    return RopeOptions(
        type="yarn",
        theta=theta,
        factor=factor,
        original_length=length,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
        attention_factor=_yarn_attention(section, name, factor),
        score_factor=_yarn_scores(section, name, factor),
    )


def _yarn_factor(config: Section, length: int) -> float:
    longest = _length(config, "config.json", "max_position_embeddings")
    if longest < length:
        raise CheckpointError(
            f"config.json gives max_position_embeddings {longest}, which is below the original"
            f" context of {length} positions that rope type 'yarn' stretches."
        )
    return longest / length


def _yarn_attention(section: Section, name: str, factor: float) -> float:
    """YaRN's temperature: 0.1 ln(factor) + 1, or DeepSeek's quotient of two such terms."""
    given = _optional(section, name, "attention_factor", above=0.0)
    numerator = _optional(section, name, "mscale", least=0.0)
    denominator = _optional(section, name, "mscale_all_dim", least=0.0)
    if given is not None:
        return given
    grown = 0.1 * math.log(factor)
    if numerator and denominator:
        return (numerator * grown + 1.0) / (denominator * grown + 1.0)
    return grown + 1.0


def _yarn_scores(section: Section, name: str, factor: float) -> float:
    """What DeepSeek's models multiply scores by besides: (0.1 mscale_all_dim ln(factor) + 1)^2."""
    scale = _optional(section, name, "mscale_all_dim", least=0.0) or 0.0
    return (0.1 * scale * math.log(factor) + 1.0) ** 2


def _section(config: Section, name: str) -> Section:
    section = config[name]
    if not isinstance(section, Mapping):
        raise _wrong(name, section, "an object or null")
    if any(isinstance(value, Mapping) for value in section.values()):
        raise UnsupportedModel(
            f"{name} in config.json holds one set of rotary options for each kind of layer"
            f" ({_shown(list(section))}); models of this family have one set for all layers."
        )
    return section


def _rope_type(section: Section, name: str) -> RopeType:
    named = [section[key] for key in ("rope_type", "type") if section.get(key) is not None]
    for value in named:
        if not isinstance(value, str):
            raise _wrong(f"{name}.rope_type", value, "a string")
    if not named:
        return "default"
    if named[0] != named[-1]:
        raise CheckpointError(
            f"{name} in config.json gives rope_type {_shown(named[0])} and type"
            f" {_shown(named[-1])};"
            " remove the one that is wrong."
        )
    named = [OLD_TYPES.get(str(value), value) for value in named]
    if named[0] not in KEYS:
        raise UnsupportedModel(
            f"rope type {_shown(named[0])} ({name} in config.json) is not supported;"
            f" supported are {', '.join(KEYS)}."
        )
    return cast(RopeType, named[0])


def _partial(config: Section, section: Section, name: str, usual: float | None) -> float:
    """The rotated part of a head; the section's word counts before that of the whole config."""
    holders = ((section, f"{name} in config.json"), (config, "config.json"))
    for holder, where in holders:
        partial = _optional(holder, where, "partial_rotary_factor", above=0.0)
        if partial is None:
            continue
        if partial > 1.0 or (usual is None and partial != 1.0):
            most = "models of this family rotate whole heads, so only 1.0 is supported"
            raise UnsupportedModel(
                f"{where} has partial_rotary_factor {partial:g}; "
                + (most if usual is None else "at most the whole head, 1.0, can be rotated")
                + "."
            )
        return partial
    return 1.0 if usual is None else usual


def _theta(config: Section, section: Section, name: str) -> float | None:
    outer = _optional(config, "config.json", "rope_theta", above=1.0)
    inner = _optional(section, name, "rope_theta", above=1.0)
    if outer is not None and inner is not None and outer != inner:
        raise CheckpointError(
            f"config.json gives rope_theta {outer:g} and {name}.rope_theta {inner:g};"
            " remove the one that is wrong."
        )
    return inner or outer


def _original_length(config: Section, section: Section, name: str, rope_type: RopeType) -> int:
    """Positions trained for; "dynamic" grows from max_position_embeddings and from nothing else."""
    key = "original_max_position_embeddings"
    holders = ((config, "config.json"), (section, name))
    given = [
        _length(holder, where, key) for holder, where in holders if holder.get(key) is not None
    ]
    if rope_type == "dynamic" or not given:
        given.append(_length(config, "config.json", "max_position_embeddings"))
    if len(set(given)) > 1:
        raise CheckpointError(
            f"config.json gives the original context of rope type {rope_type!r} as"
            f" {' and as '.join(map(str, given))} positions; make {key} agree."
        )
    return given[0]


def _length(holder: Section, where: str, key: str) -> int:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise _wrong(f"{where}.{key}", value, "a whole number of positions, 1 or more")
    return value


def _number(
    holder: Section, where: str, key: str, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    value = _optional(holder, where, key, least=least, above=above)
    if value is None:
        raise CheckpointError(f"{where} in config.json lacks {key!r}, which its rope type needs.")
    return value


def _optional(
    holder: Section, where: str, key: str, *, least: float = -math.inf, above: float = -math.inf
) -> float | None:
    value = holder.get(key)
    if value is None:
        return None
    bound = f"of at least {least:g}" if least > -math.inf else f"above {above:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        raise _wrong(f"{where}.{key}", value, f"a number {bound}")
    number = float(value)
    if not (number >= least and number > above):  # also refuses NaN
        raise _wrong(f"{where}.{key}", value, f"a number {bound}")
    return number


def _wrong(where: str, value: object, wanted: str) -> CheckpointError:
    place = where if where.startswith("config.json") else f"{where} in config.json"
    return CheckpointError(f"{place} is {_shown(value)}; {wanted} is needed.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."  # a stranger's value may be long
