"""Models as browsers fetch them, with what the CPU needs to say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.base.artifact import CompileOptions
from sterna.base.target import host_target, parse_target
from sterna.base.web import INDEX
from sterna.compiler import compile_model
from sterna.convert import convert_weight, gen_config
from sterna.web_folder import compile_folder

WINDOW = 512


@dataclass(frozen=True)
class WebModel:
    """A model as a browser fetches it, and the same for this machine's CPU."""

    folder: Path
    converted: Path
    library: Path


def web_model(source: Path, root: Path, quantization: str) -> WebModel:
    """Convert a Hugging Face folder and compile it for browsers and for the CPU."""
    converted, folder, library = root / "converted", root / "web", root / "model.so"
    convert_weight(source, converted, quantization=quantization)
    gen_config(source, converted, quantization=quantization)
    sizes = {"context_window_size": WINDOW, "prefill_chunk_size": 128, "max_batch_size": 2}
    compile_folder(converted, parse_target("webgpu"), folder, options=CompileOptions(**sizes))
    plain = CompileOptions(**sizes, activations="f32")
    compile_model(converted, host_target(), library, options=plain)
    return WebModel(folder, converted, library)


def changed(model: WebModel, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The same folder with another index: `change` is given its JSON to alter."""
    folder.mkdir()
    for path in model.folder.iterdir():
        (folder / path.name).symlink_to(path)
    index = json.loads((model.folder / INDEX).read_bytes())
    change(index)
    (folder / INDEX).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def only(target: str) -> Callable[[dict[str, Any]], object]:
    """Leaves one of the programs."""
    return lambda index: index.update(
        programs=[p for p in index["programs"] if p["target"] == target]
    )
