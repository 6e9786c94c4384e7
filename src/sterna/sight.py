"""The program that looks at images: a model's tower and projector as one more entry point.

In: the Sight of a model. Out: the entry point "see", the weights that it binds, and what the
manifest says of images. It has a cache of its own, in which nothing stays from image to image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.base.artifact import ROWS, SEE, Param, Vision
from sterna.nn.decoder import CausalLM
from sterna.nn.vision import Sight, trace_sight
from sterna.passes.bound_params import bound_params
from sterna.passes.fuse import fuse
from sterna.passes.lower_opaque import Setting
from sterna.passes.pipeline import graph_passes, run
from sterna.passes.prepack import prepack
from sterna.program import STEP_DIMS, EntryPoint, KernelTable, build_entry


@dataclass(frozen=True, slots=True)
class Seeing:
    """The entry point, and the weights that no other reads."""

    entry: EntryPoint
    params: tuple[Param, ...]


def sight_of(model: CausalLM) -> Sight | None:
    """What looks at images in a model, if anything does."""
    found = getattr(model, "sight", None)
    return found if isinstance(found, Sight) else None


def see_entry(
    sight: Sight, fused: Mapping[str, tuple[str, ...]], page_size: int, table: KernelTable
) -> Seeing:
    """Compile the pass over one image; its kernels join those of the table."""
    module = run(trace_sight(sight, page_size), graph_passes(fused, code_bits=None))
    tiles = prepack(module)
    module = fuse(module)
    setting = Setting(
        tuple(d for d in module.dims if d.name in STEP_DIMS),
        page_size,
        sight.options.rows,
        split=False,
        groups=table.target.group_threads > 0,
        barriers=table.target.barriers,
    )
    entry = build_entry(SEE, module, tiles, setting, table, ROWS)
    return Seeing(entry, bound_params(module, tiles))


def told(sight: Sight) -> Vision:
    """What the manifest says."""
    o = sight.options
    dropped = 0 if o.whole else 1
    return Vision(
        image_token=o.image_token,
        image_size=o.image_size,
        patch_size=o.patch_size,
        dropped=dropped,
    )
