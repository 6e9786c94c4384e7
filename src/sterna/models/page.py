"""The documentation's page of model families, written from the families themselves.

In: nothing but the classes. Out: Markdown: `python -m sterna.models.page > docs/models.md`. What a
family wants of a key's value is learned by reading a small config with a reader that takes notes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sterna.models import families, family
from sterna.models.config import COMMON, Config, Fields
from sterna.models.family import Family
from sterna.models.rope_options import KEYS

HEAD = """# Model families

Sterna reads a model's `config.json` and takes what it knows how to compute. A key that it does not
know and that might change the result is refused by name; so are an architecture with another head
and a value that is not in the last column. This page is written by
`python -m sterna.models.page`; a test compares the two.
"""

TESTS = """## How they are tested

For each family there is a tiny model of random weights whose logits `transformers` computed in
float32, those of RWKV-7 its authors' package `rwkv`. The compiled model gives them to 1e-4: in one
prefill, in chunks, and token by token; two sequences in a batch give the bits of each alone
(`tests/models/test_family_logits.py`). Configs and weight indexes of published models build their
graphs with the right names and shapes (`tests/models/test_real_configs.py`). Quantized, each family
converts and runs, and gives the logits of the weights as restored
(`tests/models/test_family_schemes.py`). Models that embed are tested by their hidden states
(`tests/models/test_embedding_families.py`) and by the vectors that come out
(`tests/e2e/test_embeddings.py`), models that take images with two images in the prompt
(`tests/models/test_vision.py`, `tests/models/test_grid_vision.py`) and from a picture's file to an
answer (`tests/e2e/test_images.py`, `tests/e2e/test_images_of_any_size.py`).
"""

_SMALL: Config = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 64,
}


@dataclass(frozen=True, slots=True)
class _Notes(Fields):
    """Fields that remember which values of a key are the only ones taken."""

    only: dict[str, list[object]] = field(default_factory=dict)

    def refuse_unless(self, key: str, allowed: Iterable[object]) -> None:
        self.only.setdefault(key, list(allowed))


def docs_page() -> str:
    """The text of docs/models.md."""
    classes = dict.fromkeys(family({"model_type": name}) for name in families())
    ordered = sorted(classes, key=lambda cls: (cls.__module__, cls.MODEL_TYPES))
    files: dict[str, list[type[Family]]] = {}
    for cls in ordered:
        files.setdefault(cls.__module__, []).append(cls)
    head = "| family | `model_type` | architectures | keys of its own | only with |\n" + "|---" * 5
    rows = (_row(title, group) for title, group in files.items())
    ropes = ", ".join(f"`{name}`" for name in KEYS)
    common = ", ".join(f"`{key}`" for key in sorted(COMMON))
    return "\n".join(
        [HEAD, f"{head}|", *rows, f"\nEvery family reads {common}. Rotary types: {ropes}.\n", TESTS]
    )


def _row(module: str, group: list[type[Family]]) -> str:
    what = (inspect.getdoc(sys.modules[module]) or "").partition("\n")[0].rstrip(".")
    types = ", ".join(f"`{name}`" for cls in group for name in cls.MODEL_TYPES)
    architectures = dict.fromkeys(name for cls in group for name in cls.ARCHITECTURES)
    own = dict.fromkeys(key for cls in group for key in cls.KEYS.split())
    only: dict[str, list[object]] = {}
    for cls in group:
        only |= _only(cls)
    return f"| {what} | {types} | {', '.join(architectures)} | {', '.join(own)} | {_shown(only)} |"


def _only(cls: type[Family]) -> Mapping[str, list[object]]:
    notes = _Notes({**_SMALL, "model_type": cls.MODEL_TYPES[0]})
    cls.read(notes)
    return {key: values for key, values in notes.only.items() if key != "max_sequence_length"}


def _shown(only: Mapping[str, list[object]]) -> str:
    values = {key: [v for v in found if v is not None] for key, found in only.items()}
    return "; ".join(f"{key} = {' or '.join(map(str, v))}" for key, v in values.items())


if __name__ == "__main__":
    sys.stdout.write(docs_page())
