"""Model families, one file each. A `model_type` names its file; ALIASES names those that share one.

family = models.family(config)      # the module of the config's model_type
model = models.build(config, scheme)
model.parameters()                  # what the folder on disk must hold
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.nn.decoder import CausalLM
from sterna.quantize.apply import apply
from sterna.quantize.scheme import Scheme

ALIASES = {"mistral": "llama"}


def families() -> list[str]:
    """Every model_type there is a file for."""
    files = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted([*(n for n in files if hasattr(_module(n), "build")), *ALIASES])


def family(config: Mapping[str, object]) -> ModuleType:
    """The family file of a config.json, or UnsupportedModel naming those there are."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError("config.json has no model_type, so its family cannot be told")
    known = families()
    if model_type not in known:
        close = get_close_matches(model_type, known, n=1)
        hint = f" Close: {close[0]!r}." if close else ""
        raise UnsupportedModel(
            f"model_type {model_type!r} in config.json has no family in this version.{hint} "
            f"Supported: {', '.join(known)}."
        )
    return _module(ALIASES.get(model_type, model_type))


def build(
    config: Mapping[str, object], scheme: Scheme, context_length: int | None = None
) -> CausalLM:
    """The model of a config.json with the scheme's packed weights in place."""
    model: CausalLM = family(config).build(config, scheme.compute, context_length)
    apply(model, scheme)
    model.name_parameters()
    return model


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
