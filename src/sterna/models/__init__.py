"""Model families, one file each: a subclass of Family, found by the model types that it names.

family = models.family(config)      # the class for the config's model_type
model = models.build(config, scheme)
model.parameters()                  # what the folder on disk must hold
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

from sterna.base.dtype import F32
from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.models.family import Family
from sterna.nn.decoder import CausalLM
from sterna.quantize.apply import apply
from sterna.quantize.recipe import Quantization


def families() -> list[str]:
    """Every model_type there is a family for."""
    return sorted(_by_type())


def family(config: Mapping[str, object]) -> type[Family]:
    """The family of a config.json, or UnsupportedModel naming those there are."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError("config.json has no model_type, so its family cannot be told")
    known = _by_type()
    if model_type not in known:
        close = get_close_matches(model_type, known, n=1)
        hint = f" Close: {close[0]!r}." if close else ""
        raise UnsupportedModel(
            f"model_type {model_type[:60]!r} in config.json has no family in this version.{hint} "
            f"Supported: {', '.join(sorted(known))}."
        )
    return known[model_type]


def build(
    config: Mapping[str, object], quantization: Quantization, context_length: int | None = None
) -> CausalLM:
    """The model of a config.json with the packed weights of its scheme, or recipe, in place."""
    model = family(config).build(config, quantization.compute, context_length)
    apply(model, quantization)
    model.name_parameters()
    return model


def expert_weights(config: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The path of each weight that holds all experts', and what checkpoints call one expert's."""
    module = family(config)
    found: dict[str, tuple[str, ...]] = {}
    for path, parameter in module.build(config, F32).parameters():
        if parameter.stack > 1:
            found[path] = module.expert_names(path, parameter.stack)
    return found


@cache
def _by_type() -> dict[str, type[Family]]:
    """Each file's families by their model types."""
    found: dict[str, type[Family]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Family):
                found.update(dict.fromkeys(value.MODEL_TYPES, value))
    return found
