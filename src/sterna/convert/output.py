"""The folder that is written: whose it is, and what `sterna.json` says.

In: the output folder as found. Out: what an earlier command of ours left there for the same model,
or a refusal: another model, and anything that is no model, is never written over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.base.errors import UsageError
from sterna.base.version import __version__
from sterna.checkpoint.beside import disk_errors, recover
from sterna.checkpoint.mlc import CONFIG
from sterna.checkpoint.mlc_index import INDEX, OLD_INDEX
from sterna.checkpoint.model_folder import FORMAT, STERNA, read_sterna
from sterna.convert.source import Source
from sterna.models.params import fingerprint
from sterna.quantize.recipe import Recipe, read_recipe, recipe_json
from sterna.quantize.scheme import Scheme

# The part of the folder that each command writes besides sterna.json's own keys.
WEIGHT_KEYS = ("weights", "receipt")
CONFIG_KEYS = ("overrides", "chat_template")


def found_in(output: Path, source: Source) -> dict[str, Any]:
    """The `sterna.json` of an output folder that holds this very model; {} for a new folder.

    The model is the same when its config.json, model type and quantization are. Raises UsageError
    for a folder that holds something else.
    """
    with disk_errors(output):
        recover(output)
        if not output.exists():
            return {}
        if not output.is_dir():
            raise UsageError(f"{output} is a file; give a folder for the model")
        names = sorted(path.name for path in output.iterdir())
    if not names:
        return {}
    if STERNA not in names:
        raise UsageError(_not_ours(output, names))
    found = read_sterna(output)
    difference = _difference(found, source)
    if difference:
        raise UsageError(
            f"{output} holds another model ({difference}); give another folder, or remove it first"
        )
    return found


def kept_recipe(output: Path) -> Recipe | None:
    """The recipe of the weights that a folder holds, if they have one."""
    if not (output / STERNA).is_file():
        return None
    found = read_sterna(output)
    if "recipe" not in found:
        return None
    return read_recipe(str(found.get("quantization")), found["recipe"], str(output / STERNA))


def _not_ours(output: Path, names: list[str]) -> str:
    if {CONFIG, INDEX, OLD_INDEX}.intersection(names):
        return f"{output} holds a model that was not converted by Sterna; give another folder"
    return (
        f"{output} holds other things ({', '.join(names[:3])}) and no converted model; "
        "give a new or empty folder"
    )


def _difference(found: dict[str, Any], source: Source) -> str | None:
    for key, wanted in (
        ("quantization", source.quantization.name),
        ("model_type", source.model_type),
    ):
        if found.get(key) != wanted:
            return f"its {key} is {found.get(key)!r}, not {wanted!r}"
    config = found.get("config")
    if not isinstance(config, dict):
        return f"its {STERNA} has no config"
    for key in sorted({*config, *source.config}):
        if config.get(key) != source.config.get(key):
            return (
                f"{key} in its config.json is {config.get(key)!r:.80}, "
                f"not {source.config.get(key)!r:.80}"
            )
    return None


def _recipe(source: Source) -> dict[str, Any]:
    """Which scheme each weight has, where one name does not say it."""
    recipe = source.quantization
    return {} if isinstance(recipe, Scheme) else {"recipe": recipe_json(recipe)}


def sterna_json(source: Source, found: dict[str, Any], own: dict[str, Any]) -> bytes:
    """The whole `sterna.json`: who the model is, `own` keys, and what the other command left."""
    known = {"overrides": {}, **found, **own}
    parts = {key: known[key] for key in (*CONFIG_KEYS, *WEIGHT_KEYS) if key in known}
    content = {
        "format": FORMAT,
        "sterna": __version__,
        "model_type": source.model_type,
        "quantization": source.quantization.name,
        "fingerprint": fingerprint({**source.effective, **parts["overrides"]}, source.quantization),
        **_recipe(source),
        "config": source.config,
        "generation_config": source.generation_config,
        **parts,
    }
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
