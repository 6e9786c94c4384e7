"""Write goldens/default_configs.json: each family's config.json as transformers saves it.

    PYTHONPATH=src python tests/models/make_default_configs.py

Needs transformers. Left out is what it does not know, and models of text and images, whose default
parts do not fit together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, __version__

from sterna import models

GOLDENS = Path(__file__).parent / "goldens" / "default_configs.json"


def saved(model_type: str) -> dict[str, Any] | None:
    try:
        config = AutoConfig.for_model(model_type)
    except ValueError:
        return None
    found: dict[str, Any] = json.loads(config.to_json_string())
    architecture = models.family({"model_type": model_type}).ARCHITECTURES[0]
    found |= {"architectures": [architecture], "model_type": model_type}
    return None if "text_config" in found or "vision_config" in found else found


def main() -> None:
    found = {name: saved(name) for name in models.families()}
    kept = {name: config for name, config in found.items() if config is not None}
    lines = [f"{json.dumps(n)}: {json.dumps(c, sort_keys=True)}" for n, c in kept.items()]
    head = f'{{"transformers": {json.dumps(__version__)}, "configs": {{'
    GOLDENS.write_text(head + "\n" + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
