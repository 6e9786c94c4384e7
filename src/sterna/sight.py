"""The program that looks at images: a model's tower and projector as one more entry point.

In: the Sight of a model. Out: the entry point "see", the weights that it binds, and what the
manifest says of images. It has a cache of its own, in which nothing stays from image to image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import ROWS, SEE, Param
from sterna.nn.decoder import CausalLM
from sterna.nn.vision import Sight
from sterna.passes.bound_params import bound_params
from sterna.passes.fuse import fuse
from sterna.passes.lower_opaque import Setting
from sterna.passes.pipeline import graph_passes, run
from sterna.passes.prepack import prepack
from sterna.program import STEP_DIMS, EntryPoint, KernelTable, build_entry
from sterna.schedule.choose import streams_of


@dataclass(frozen=True, slots=True)
class Seeing:
    """The entry point, and the weights and small tensors that no other reads."""

    entry: EntryPoint
    params: tuple[Param, ...]
    constants: Mapping[str, NDArray[np.float32]]


def sight_of(model: CausalLM) -> Sight | None:
    """What looks at images in a model, if anything does."""
    found = getattr(model, "sight", None)
    return found if isinstance(found, Sight) else None


def see_entry(
    sight: Sight,
    fused: Mapping[str, tuple[str, ...]],
    page_size: int,
    context: int,
    table: KernelTable,
) -> Seeing:
    """Compile the pass over one image; its kernels join those of the table."""
    module = run(sight.traced(page_size, context), graph_passes(fused, code_bits=None))
    tiles = prepack(module, streams_of(table.target))
    module = fuse(module)
    dims = tuple(d for d in module.dims if d.name in STEP_DIMS)
    setting = Setting.of(table.target, dims, page_size, sight.most_rows(context), split=False)
    entry = build_entry(SEE, module, tiles, setting, table, ROWS)
    return Seeing(entry, bound_params(module, tiles), module.constants)
