"""Images in a prompt: where their tokens stand, and what stands for those in the prefix cache.

In: a prompt with one placeholder for each image, and the patches. Out: the prompt with as many
placeholders as each image has rows, Pictures, and the prompt's spelling: there each token of an
image is a number below 0 made of all its pixels, so that two images never share pages. Knows no
image formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from sterna.base.artifact import Vision
from sterna.base.errors import RequestError
from sterna.runtime.executable import Floats, Grid, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """An image as a model looks at it; with a `grid` it takes so many rows of tokens, columns."""

    values: Floats  # [patches, width]
    grid: Grid | None = None


@dataclass(slots=True, eq=False)
class Picture:
    """The image of tokens `start` to `end` of a prompt; `rows` once the model has looked at it."""

    start: int
    end: int
    patches: Patches
    rows: Floats | None = None  # [end - start, hidden]

    @property
    def saved(self) -> int:
        """Positions that its tokens take less than as many of text, where they lie on axes."""
        grid = self.patches.grid
        return 0 if grid is None else self.end - self.start - max(grid)


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt with its images; without any the spelling is empty."""

    ids: list[int]
    pictures: tuple[Picture, ...] = ()
    spelling: tuple[int, ...] = ()


def with_pictures(
    ids: Sequence[int], images: Sequence[Patches], vision: Vision | None, model: str
) -> Shown:
    """Put images, in their order, where the prompt has placeholders.

    RequestError where there are more or fewer of these.
    """
    token = None if vision is None else vision.image_token
    places = [] if token is None else [i for i, own in enumerate(ids) if own == token]
    if len(places) != len(images):
        raise RequestError(
            f"the prompt has {len(places)} placeholders for images and the request {len(images)} "
            f"images; give each image in a message to {model} as a part of type image_url, and "
            "write no placeholders",
            "messages",
        )
    if vision is None or not images:
        return Shown(list(ids))
    found: list[int] = []
    spelling: list[int] = []
    pictures = []
    before = 0
    for place, patches in zip(places, images, strict=True):
        found += ids[before:place]
        spelling += ids[before:place]
        count = vision.tokens if patches.grid is None else prod(patches.grid)
        pictures.append(Picture(len(found), len(found) + count, patches))
        found += [vision.image_token] * count
        spelling += content_keys(patches, count)
        before = place + 1
    found += ids[before:]
    spelling += ids[before:]
    return Shown(found, tuple(pictures), tuple(spelling))


def readable(spelled: Sequence[int], vision: Vision) -> tuple[int, ...]:
    """Tokens of what the prefix cache knows them as."""
    return tuple(vision.image_token if token < 0 else token for token in spelled)


def on_axes(pictures: Sequence[Picture], first: int, count: int) -> Ints:
    """Positions [count, 3] in time, height and width of the tokens of a prompt from `first` on.

    An image is at one time, its tokens at their row and column; what follows it goes on behind
    the longer of its sides. Source: Wang et al. 2024, "Qwen2-VL" (arXiv:2409.12191).
    """
    flat = np.arange(first, first + count, dtype=np.int32)
    found = np.repeat(flat[:, None], 3, 1)
    saved = 0
    for picture in pictures:
        inside = (picture.start <= flat) & (flat < picture.end)
        if picture.patches.grid is not None and inside.any():
            own, columns = flat[inside] - picture.start, picture.patches.grid[1]
            places = np.stack([np.zeros_like(own), own // columns, own % columns], 1)
            found[inside] = picture.start - saved + places
        saved += picture.saved
        found[flat >= picture.end] -= picture.saved
    return found


def content_keys(patches: Patches, count: int) -> list[int]:
    """`count` numbers from -2**63 to -1 that tell this image, and the token in it."""
    values = patches.values
    form = f"{values.shape}" if patches.grid is None else f"{values.shape}{patches.grid}"
    content = hashlib.sha256(form.encode() + values.tobytes()).digest()
    words = np.frombuffer(hashlib.shake_256(content).digest(8 * count), "<i8")
    keys: list[int] = (words | np.int64(-(2**63))).tolist()
    return keys
