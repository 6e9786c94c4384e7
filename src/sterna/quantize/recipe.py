"""Which scheme each weight has, where one scheme for all of a model is not the truth.

In: what a checkpoint's weights turned out to be, or what a budget chose. Out: Recipe, which
answers what a Scheme answers, weight by weight, and its JSON. Weights are named as checkpoints
name them, so that a recipe outlives the stacking of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from sterna.base.dtype import DTYPES, DType
from sterna.base.errors import UnsafeFile, UsageError
from sterna.quantize.scheme import SCHEMES, Kind, Scheme

_MAX_SCHEMES = 256  # different ones in a model
_MAX_LEVELS = 256
_LAYOUTS, _PACKINGS = ("NK", "KN"), ("word", "stream")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`own` schemes by the path of a weight, such as "model.layers.3.mlp.up_proj.weight".

    A weight that is not named follows `base`, as every weight does where a Scheme stands alone.
    `name` is what the folder is called by.
    """

    name: str
    base: Scheme
    own: Mapping[str, Scheme]

    @property
    def compute(self) -> DType:
        return self.base.compute

    @property
    def is_quantized(self) -> bool:
        return True

    def for_weight(self, path: str, kind: Kind) -> Scheme:
        """The scheme of one weight."""
        return self.own.get(path) or self.base.for_kind(kind)


Quantization = Scheme | Recipe


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as `sterna.json` holds it: each scheme once, and the weights that have it."""
    names: dict[Scheme, str] = {}
    weights: dict[str, str] = {}
    for path, scheme in recipe.own.items():
        if scheme not in names:
            taken = set(names.values())
            again = sum(name.split("#")[0] == scheme.name for name in taken)
            names[scheme] = f"{scheme.name}#{again + 1}" if again else scheme.name
        weights[path] = names[scheme]
    return {
        "base": recipe.base.name,
        "schemes": {title: _scheme_json(scheme) for scheme, title in names.items()},
        "weights": weights,
    }


def read_recipe(name: str, found: object, source: str) -> Recipe:
    """Undo `recipe_json`; `source` names the file in errors. Raises UnsafeFile."""
    if not isinstance(found, dict):
        raise UnsafeFile(f"{source}: the recipe must be a JSON object")
    base, schemes, weights = (found.get(key) for key in ("base", "schemes", "weights"))
    if not (isinstance(base, str) and isinstance(schemes, dict) and isinstance(weights, dict)):
        raise UnsafeFile(f"{source}: the recipe needs base, schemes and weights")
    if base not in SCHEMES:
        raise UnsafeFile(f"{source}: the recipe's base {base[:80]!r} is not known")
    if len(schemes) > _MAX_SCHEMES:
        raise UnsafeFile(f"{source}: the recipe has more than {_MAX_SCHEMES} schemes")
    known = {title: _read_scheme(record, f"{source}: {title[:80]!r}") for title, record in
             schemes.items()}  # fmt: skip
    own: dict[str, Scheme] = {}
    for path, title in weights.items():
        if not isinstance(title, str) or title not in known:
            raise UnsafeFile(f"{source}: {path[:200]!r} has a scheme that is not described")
        own[path] = known[title]
    return Recipe(name, SCHEMES[base], MappingProxyType(own))


def _scheme_json(scheme: Scheme) -> dict[str, Any]:
    """The fields that are not the default."""
    record = {key: str(value) if isinstance(value, DType) else value
              for key, value in _fields(scheme).items()}  # fmt: skip
    return {key: value for key, value in record.items() if value != _DEFAULTS.get(key, ...)}


def _fields(scheme: Scheme) -> dict[str, Any]:
    """The fields of a scheme as they are."""
    return {field.name: getattr(scheme, field.name) for field in fields(scheme)}


_DEFAULTS = {field.name: field.default for field in fields(Scheme)}


def _read_scheme(record: object, source: str) -> Scheme:
    found = record if isinstance(record, dict) else {}
    values = {key: value for key, value in found.items() if value is not None}
    if not {"name", "bits", "compute"} <= set(values):
        raise UnsafeFile(f"{source}: a scheme needs name, bits and compute")
    unknown = sorted(set(values) - set(_DEFAULTS))
    if unknown:
        raise UnsafeFile(f"{source}: the scheme has the unknown field {unknown[0][:80]!r}")
    for key in ("compute", "scale"):
        if key in values:
            values[key] = _dtype(values[key], source)
    for key in ("bits", "group", "outer", "exponent", "zero"):
        if key in values:
            _check_count(values[key], key, source)
    _check_choices(values, source)
    bits = values["bits"]
    if not 1 <= bits <= 64 or (values.get("group") and bits > 8):
        raise UnsafeFile(f"{source}: {bits} bits are not a code's")
    if values.get("exponent", 0) >= bits or values.get("zero", 0) > 255:
        raise UnsafeFile(f"{source}: its exponent or its zero does not fit {bits} bits")
    unit, group = values.get("outer") or values.get("group", 0), values.get("group", 0)
    if group and unit % group:
        raise UnsafeFile(f"{source}: groups of {group} do not fill {unit} weights")
    if values["name"] and not group and values["name"] not in SCHEMES:
        raise UnsafeFile(f"{source}: {values['name'][:80]!r} has no groups and is not known")
    try:
        return Scheme(**values)
    except UsageError as error:
        raise UnsafeFile(f"{source}: {error}") from error


def _dtype(value: object, source: str) -> DType:
    if not isinstance(value, str) or value not in DTYPES:
        raise UnsafeFile(f"{source}: {value!r:.80} is not a dtype")
    return DTYPES[value]


def _check_count(value: object, key: str, source: str) -> None:
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise UnsafeFile(f"{source}: {key} must be a small whole number, not {value!r:.80}")


def _check_choices(values: dict[str, Any], source: str) -> None:
    if not isinstance(values["name"], str):
        raise UnsafeFile(f"{source}: the name of a scheme must be a string")
    for key, choices in (("layout", _LAYOUTS), ("packing", _PACKINGS)):
        if values.get(key, choices[0]) not in choices:
            raise UnsafeFile(f"{source}: {key} must be one of {', '.join(choices)}")
    for key in ("affine", "ends", "minimum", "indexed"):
        if not isinstance(values.get(key, False), bool):
            raise UnsafeFile(f"{source}: {key} must be true or false")
    levels = values.get("levels", ())
    if (
        not isinstance(levels, list | tuple)
        or len(levels) > _MAX_LEVELS
        or not all(
            isinstance(level, int | float) and not isinstance(level, bool) for level in levels
        )
    ):
        raise UnsafeFile(f"{source}: levels must be a list of at most {_MAX_LEVELS} numbers")
    values["levels"] = tuple(float(level) for level in levels)
    if levels and len(levels) != 1 << values["bits"]:
        raise UnsafeFile(f"{source}: {values['bits']} bits need {1 << values['bits']} levels")
