"""Images of any size to the patches that a model looks at, square by square.

In: an image_url and the model folder's preprocessor_config.json. Out: float32 patches and how many
squares of them are above and beside each other, prepared as transformers' Qwen2VLImageProcessor
does. Knows no prompt and no model but its Vision.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sterna.base.artifact import Vision
from sterna.base.errors import ArtifactError, RequestError
from sterna.engine.image_reader import (
    BICUBIC,
    Colours,
    decode_image,
    image_bytes,
    processor_config,
)
from sterna.engine.pictures import Patches

if TYPE_CHECKING:
    from PIL.Image import Image

_LEAST, _MOST = 56 * 56, 28 * 28 * 1280  # pixels, where a config does not say


@dataclass(frozen=True, slots=True)
class GridReader:
    """How one model wants images: sides of whole squares, and from `least` to `most` pixels.

    Larger images are made as small as `most`: that of the model's own config, or what the program
    is made for where that is less.
    """

    vision: Vision
    least: int
    most: int
    colours: Colours

    @classmethod
    def load(cls, folder: Path, vision: Vision) -> GridReader:
        """Read a model folder's file; ArtifactError for images that are prepared otherwise."""
        config, path = processor_config(folder)
        own = ("patch_size", vision.patch_size), ("merge_size", vision.merge)
        for key, wanted in (*own, ("temporal_patch_size", vision.frames)):
            if config.get(key, wanted) != wanted:
                raise ArtifactError(
                    f"{path} has {key} = {config[key]!r:.40}, the model's own is {wanted}"
                )
        least = _pixels(config, "min_pixels", "shortest_edge", _LEAST, path)
        most = _pixels(config, "max_pixels", "longest_edge", _MOST, path)
        room = vision.most * (vision.patch_size * vision.merge) ** 2
        if least > min(most, room):
            raise ArtifactError(
                f"{path} wants images of {least} to {most} pixels, and the library is made for up "
                f"to {room}; compile it with a larger context"
            )
        return cls(vision, least, min(most, room), Colours.read(config, path))

    def read(self, url: str, where: str) -> Patches:
        """An image_url's patches; RequestError naming the field for all that is no such image."""
        image = decode_image(image_bytes(url, where), where)
        found = self.patches(image)
        if found.grid is not None and found.grid[0] * found.grid[1] > self.vision.most:
            raise RequestError(
                f"{where} is {image.size[0]} x {image.size[1]} pixels, a form that does not fit "
                f"the {self.vision.most} tokens of an image; send it wider or higher",
                where,
            )
        return found

    def patches(self, image: Image) -> Patches:
        """Of an RGB image: squares from its upper left corner on, row by row in each."""
        v = self.vision
        side, merge = v.patch_size, v.merge
        height, width = self.resized(image.size[1], image.size[0])
        pixels = np.asarray(image.resize((width, height), BICUBIC), np.float32)
        pixels = self.colours.normalized(pixels)
        grid = height // (side * merge), width // (side * merge)
        cut = pixels.reshape(grid[0], merge, side, grid[1], merge, side, 3)
        cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        frames = np.broadcast_to(cut, (*cut.shape[:5], v.frames, side, side))
        count = grid[0] * grid[1] * merge**2
        return Patches(np.ascontiguousarray(frames).reshape(count, -1), grid)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Sides that are whole squares and keep the form, as near as `least` and `most` allow."""
        factor = self.vision.patch_size * self.vision.merge
        high, wide = (round(side / factor) * factor for side in (height, width))
        if high * wide > self.most:
            shrink = sqrt(height * width / self.most)
            high, wide = (
                max(factor, floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif high * wide < self.least:
            grow = sqrt(self.least / (height * width))
            high, wide = (ceil(side * grow / factor) * factor for side in (height, width))
        return high, wide


def _pixels(config: Any, key: str, edge: str, usual: int, path: Path) -> int:
    """A number of pixels: by its own name, or as the "edge" that newer files call it."""
    size = config.get("size")
    value = config.get(key)
    if value is None and size is not None:
        value = size.get(edge) if isinstance(size, dict) else size
    value = usual if value is None else value
    if type(value) is not int or not 0 < value < 2**31:
        raise ArtifactError(f"{path} has {key} = {value!r:.40}; a number of pixels is wanted")
    return value
