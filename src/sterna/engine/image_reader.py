"""Images as callers send them, to the patches that a model looks at.

In: an image_url and the model folder's preprocessor_config.json. Out: float32 patches, prepared as
transformers' CLIPImageProcessor does. Nothing is fetched: an image comes inside the request. What
it decodes to is bounded before it is decoded. Knows no prompt and no model but its Vision.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sterna.base.artifact import Vision
from sterna.base.errors import ArtifactError, RequestError
from sterna.engine.pictures import Patches
from sterna.runtime.executable import Floats
from sterna.text.json_file import read_optional

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_IMAGES = 16  # of one request
MAX_BYTES = 12 << 20  # of one image, as it is sent
MAX_PIXELS = 1 << 25  # of one image, as it is decoded
MAX_RATIO = 100  # of its sides
CONFIG = "preprocessor_config.json"

BICUBIC = 3  # as Pillow counts
_SWITCHES = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_MEAN = [0.48145466, 0.4578275, 0.40821073]  # of CLIP's pictures
_DEVIATION = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True, slots=True)
class Colours:
    """How numbers of a pixel become those that a model sees, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], path: Path) -> Colours:
        """What a preprocessor's config says; silence means as for CLIP."""
        return cls(
            _number(config.get("rescale_factor", 1 / 255), path),
            _three(config.get("image_mean", _MEAN), path),
            _three(config.get("image_std", _DEVIATION), path),
        )

    def normalized(self, pixels: Floats) -> Floats:
        """Of float32 [height, width, 3]."""
        pixels = (pixels * np.float32(self.scale)).astype(np.float32)
        mean, deviation = (np.array(v, np.float32) for v in (self.mean, self.deviation))
        found: Floats = (pixels - mean) / deviation
        return found


@dataclass(frozen=True, slots=True)
class ImageReader:
    """How one model wants images: resized so that the shorter side fits, cut, normalized."""

    vision: Vision
    shorter: int
    colours: Colours

    @classmethod
    def load(cls, folder: Path, vision: Vision) -> ImageReader:
        """Read a model folder's file; ArtifactError for images that are prepared otherwise."""
        config, path = processor_config(folder)
        _check_crop(config, path, vision.image_size)
        shorter = _side(config.get("size", vision.image_size), "shortest_edge")
        if shorter is None or shorter < vision.image_size:
            raise ArtifactError(
                f"{path} resizes images to {config.get('size')!r:.80}; supported: a shortest_edge "
                f"of {vision.image_size} or more"
            )
        return cls(
            vision,
            shorter,
            Colours.read(config, path),
        )

    def read(self, url: str, where: str) -> Patches:
        """An image_url's patches; RequestError naming the field for all that is no such image."""
        return Patches(self.patches(decode_image(image_bytes(url, where), where)))

    def patches(self, image: Image) -> Floats:
        """[patches, channels * side * side] of an RGB image, from its upper left corner on."""
        size, side = self.vision.image_size, self.vision.patch_size
        width, height = image.size
        short = min(width, height)
        new = (self.shorter * width // short, self.shorter * height // short)
        left, top = (new[0] - size) // 2, (new[1] - size) // 2
        pixels = np.asarray(image.resize(new, BICUBIC), np.float32)
        pixels = pixels[top : top + size, left : left + size]
        pixels = self.colours.normalized(pixels)
        count = size // side
        whole = pixels[: count * side, : count * side]
        cut = whole.reshape(count, side, count, side, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(cut, np.float32).reshape(count * count, -1)


def image_bytes(url: str, where: str) -> bytes:
    """The bytes inside a data: URL; addresses are refused, for nothing is fetched."""
    kind, _, rest = url.partition(":")
    if kind != "data":
        raise RequestError(
            f"{where} is {url!r:.80}, but images are not fetched; send the image itself as "
            "data:image/png;base64,...",
            where,
        )
    head, comma, body = rest.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RequestError(f"{where} is no data:image/...;base64,... URL", where)
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise RequestError(f"{where} has more than {MAX_BYTES >> 20} MiB; send it smaller", where)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} is not base64", where) from None


def decode_image(data: bytes, where: str) -> Image:
    """An RGB image, turned as its EXIF data says; its header is believed only within bounds."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened.size, where)
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise RequestError(
            f"{where} is no image that can be read; possible are {', '.join(FORMATS)}", where
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("more pixels than any camera makes", where) from None
    except RequestError:
        raise
    except Exception as error:  # decoders raise what they like for files that are cut or damaged
        raise RequestError(
            f"{where} is a damaged image ({type(error).__name__}: {str(error)[:100]})", where
        ) from None


def check_library() -> None:
    """RequestError where the library that decodes images is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise RequestError(
            "reading images needs Pillow, which is not installed: pip install 'sterna[vision]'"
        )


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels", where)
    if max(size) > MAX_RATIO * min(size):
        raise RequestError(
            f"{where} is {width} x {height} pixels; one side may be {MAX_RATIO} times the other at "
            "most",
            where,
        )


def _too_large(what: str, where: str) -> RequestError:
    return RequestError(
        f"{where} has {what}, possible are up to {MAX_PIXELS} pixels; send it smaller", where
    )


def processor_config(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """What a model folder says of preparing images, and its file.

    ArtifactError where it says nothing, or what no model here has.
    """
    path = folder / CONFIG
    config = read_optional(path)
    inner = read_optional(folder / "processor_config.json").get("image_processor")
    config = config or (inner if isinstance(inner, dict) else {})
    if not config:
        raise ArtifactError(
            f"{folder} has no {CONFIG}, which says how images are prepared; copy it from the "
            "model's own folder and convert again"
        )
    _check(config, path)
    return config, path


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what would prepare an image otherwise than here."""
    for key in _SWITCHES:
        if config.get(key, True) is not True:
            raise ArtifactError(f"{path} has {key} = {config[key]!r:.40}; supported: true")
    if config.get("do_pad") not in (None, False):
        raise ArtifactError(f"{path} has do_pad = {config['do_pad']!r:.40}; supported: false")
    if config.get("resample", BICUBIC) != BICUBIC:
        raise ArtifactError(f"{path} has resample = {config['resample']!r:.40}; supported: 3")


def _check_crop(config: Mapping[str, Any], path: Path, size: int) -> None:
    if config.get("do_center_crop", True) is not True:
        raise ArtifactError(
            f"{path} has do_center_crop = {config['do_center_crop']!r:.40}; supported: true"
        )
    crop = config.get("crop_size", size)
    if _side(crop, "height") != size or _side(crop, "width") != size:
        raise ArtifactError(
            f"{path} cuts images to {crop!r:.80}, the model looks at {size} x {size} pixels"
        )


def _side(value: object, key: str) -> int | None:
    """A side in pixels, written as a number or in an object."""
    found = value.get(key) if isinstance(value, dict) else value
    right = isinstance(found, int) and not isinstance(found, bool) and 0 < found < 65536
    return found if right else None  # type: ignore[return-value]


def _number(value: object, path: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6:
        raise ArtifactError(f"{path} has {value!r:.40} where a positive number is wanted")
    return float(value)


def _three(value: object, path: Path) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 3:
        raise ArtifactError(f"{path} has {value!r:.80} where three numbers are wanted")
    return tuple(_number(one, path) for one in value)
