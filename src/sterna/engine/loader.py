"""A model folder and its compiled library to the parts of an engine.

Finding them, compiling a missing library and opening the weights is the business of the caller's
`resolve`: that needs the compile wing, which this room does not import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sterna.base.artifact import Manifest
from sterna.base.errors import Unavailable
from sterna.engine.chat_config import check_library, read_chat_config
from sterna.engine.limits import plan
from sterna.engine.options import EngineOptions
from sterna.engine.parts import Parts
from sterna.runtime import cpu
from sterna.runtime.host import available_memory, usable_cores
from sterna.runtime.library import read_manifest
from sterna.runtime.memory import pages_that_fit
from sterna.text.chat_template import ChatTemplate
from sterna.text.tokenizer import Tokenizer

_MEMORY_SHARE = 0.9  # of what is free; the rest is for the process itself


@dataclass(frozen=True, slots=True)
class Located:
    """A converted model's folder, a library compiled for it, and its tensors, not yet read."""

    folder: Path
    library: Path
    weights: Mapping[str, cpu.WeightReader]


# (model, model_lib, device) as the user gave them; None: the resolver finds or makes one
Resolve = Callable[[str | Path | None, str | Path | None, str], Located]


def load(located: Located, options: EngineOptions) -> Parts:
    """Check that folder and library belong together, then load both.

    ArtifactError when they do not, TokenizerError, OutOfMemory, and what the device raises.
    """
    config = read_chat_config(located.folder)
    manifest = read_manifest(located.library)
    check_library(config, manifest, located.folder, located.library)
    tokenizer = Tokenizer.load(located.folder)
    template = ChatTemplate.load(located.folder)
    threads = options.threads or usable_cores()
    limits = plan(options, manifest, _fitting_pages(manifest, threads))
    executable = cpu.load(
        located.library, located.weights, num_pages=limits.num_pages, threads=threads
    )
    return Parts(
        executable=executable,
        limits=limits,
        tokenizer=tokenizer,
        template=template,
        model_name=located.folder.resolve().name,
        defaults=config.defaults,
        stop_ids=config.stop_ids | frozenset(tokenizer.eos_ids),
        stop_strings=config.stop_strings,
        conv_template=config.conv_template,
    )


def check_device(device: str) -> None:
    """Unavailable for a device that this Sterna cannot run on."""
    if device not in ("auto", "cpu"):
        raise Unavailable(f"device is {device!r}, possible are 'auto' and 'cpu'")


def _fitting_pages(manifest: Manifest, threads: int) -> int | None:
    free = available_memory()
    return None if free is None else pages_that_fit(manifest, threads, int(free * _MEMORY_SHARE))
