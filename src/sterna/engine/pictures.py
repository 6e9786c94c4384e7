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

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Vision
from sterna.base.errors import RequestError

Floats = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Picture:
    """The image of tokens `start` to `end` of a prompt; `rows` once the model has looked at it."""

    start: int
    end: int
    patches: Floats  # [patches, width]
    rows: Floats | None = None  # [end - start, hidden]


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt with its images; without any the spelling is empty."""

    ids: list[int]
    pictures: tuple[Picture, ...] = ()
    spelling: tuple[int, ...] = ()


def with_pictures(
    ids: Sequence[int], images: Sequence[Floats], vision: Vision | None, model: str
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
        pictures.append(Picture(len(found), len(found) + vision.tokens, patches))
        found += [vision.image_token] * vision.tokens
        spelling += content_keys(patches, vision.tokens)
        before = place + 1
    found += ids[before:]
    spelling += ids[before:]
    return Shown(found, tuple(pictures), tuple(spelling))


def readable(spelled: Sequence[int], vision: Vision) -> tuple[int, ...]:
    """Tokens of what the prefix cache knows them as."""
    return tuple(vision.image_token if token < 0 else token for token in spelled)


def content_keys(patches: Floats, count: int) -> list[int]:
    """`count` numbers from -2**63 to -1 that tell this image, and the token in it."""
    content = hashlib.sha256(f"{patches.shape}".encode() + patches.tobytes()).digest()
    words = np.frombuffer(hashlib.shake_256(content).digest(8 * count), "<i8")
    keys: list[int] = (words | np.int64(-(2**63))).tolist()
    return keys
