"""An image for the entry point "see": checked, put in order, and indexed before a device sees it.

In: patches, for images of any size with the rows and columns of their squares, and the manifest.
Out: inputs and dims, and which rows of the result stand for the image, in order. As in `batch`,
what passes here cannot make a kernel read or write outside its buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sterna.base.artifact import (
    GRID_POSITIONS,
    PATCHES,
    SEE,
    SIGHT_CACHE,
    WINDOW,
    Entry,
    Manifest,
    Vision,
)
from sterna.base.errors import ArtifactError, RequestError
from sterna.runtime.batch import Prepared, tiles
from sterna.runtime.executable import Floats, Grid, Ints
from sterna.runtime.memory import largest_shape


@dataclass(frozen=True, slots=True)
class PreparedSight:
    """What "see" takes for one image; `kept` are the rows of its result that are given on."""

    step: Prepared
    kept: Ints


def prepare_sight(patches: Floats, grid: Grid | None, manifest: Manifest) -> PreparedSight:
    """The inputs for one image; RequestError for patches of other sizes than the model takes."""
    vision = manifest.vision
    if vision is None:
        raise RequestError("the model takes no images")
    entry = manifest.entry(SEE)
    width = largest_shape(next(b for b in entry.inputs if b.name == PATCHES), entry)[1]
    page_size = manifest.kv_cache.page_size
    if vision.merge:
        prepared = _of_any_size(_checked(patches, grid, vision, width), vision, page_size)
    else:
        prepared = _of_one_size(patches, vision, width, page_size)
    _check_dims(prepared.step, entry)
    return prepared


def _of_one_size(patches: Floats, vision: Vision, width: int, page_size: int) -> PreparedSight:
    """All rows are one sequence that sees itself whole."""
    _check_form(patches, vision.patches, width)
    n = vision.lead + vision.patches
    rows = np.zeros((n, width), np.float32)
    rows[vision.lead :] = patches
    inputs, dims = _index(np.array([n]), page_size, "")
    inputs |= _tensors(rows)
    return PreparedSight(
        Prepared(inputs, {"n": n, **dict(zip("bpt", dims, strict=True))}),
        np.arange(vision.dropped, n, dtype=np.int32),
    )


@dataclass(frozen=True, slots=True)
class _Image:
    """Patches [squares, square * width], and where the squares are [squares, 2]."""

    squares: Floats
    places: Ints


def _checked(patches: Floats, grid: Grid | None, vision: Vision, width: int) -> _Image:
    if grid is None or min(grid) < 1 or grid[0] * grid[1] > vision.most:
        raise RequestError(
            f"an image is {grid} squares of patches, the program takes 1 to {vision.most} in all"
        )
    squares, square = grid[0] * grid[1], vision.merge**2
    _check_form(patches, squares * square, width)
    places = np.indices(grid, np.int32).reshape(2, -1).T
    return _Image(patches.reshape(squares, -1), places)


def _of_any_size(image: _Image, vision: Vision, page_size: int) -> PreparedSight:
    """Squares in the order of their windows: a sequence as a whole, and one for each window."""
    square = vision.merge**2
    order, sizes = _windows(image.places, vision.window)
    inside = np.indices((vision.merge, vision.merge), np.int32).reshape(2, -1).T
    grid = image.places[order][:, None] * vision.merge + inside
    count = len(order)
    inputs, dims = _index(np.array([count * square]), page_size, "")
    found = {"n": count, **dict(zip("bpt", dims, strict=True))}
    if vision.window:
        own, dims = _index(sizes * square, page_size, WINDOW)
        inputs |= own
        found |= zip("wqu", dims, strict=True)
    inputs |= _tensors(image.squares[order])
    inputs[GRID_POSITIONS] = np.ascontiguousarray(grid, np.int32).ravel()
    return PreparedSight(Prepared(inputs, found), np.argsort(order).astype(np.int32))


def _windows(places: Ints, window: int) -> tuple[Ints, Ints]:
    """The order of squares by their windows, row by row in each, and the windows' sizes."""
    if not window:
        return np.arange(len(places), dtype=np.int32), np.array([len(places)], np.int32)
    row, column = places.T
    order = np.lexsort((column, row, column // window, row // window)).astype(np.int32)
    of = places[order] // window
    new = np.flatnonzero((of[1:] != of[:-1]).any(1)) + 1
    sizes = np.diff([0, *new, len(places)]).astype(np.int32)
    return order, sizes


def _tensors(rows: Floats) -> dict[str, Ints]:
    cache = np.zeros(0, np.int32)  # written before it is read
    return {PATCHES: np.ascontiguousarray(rows).ravel().view(np.int32), SIGHT_CACHE: cache}


def _index(lengths: Ints, page_size: int, prefix: str) -> tuple[dict[str, Ints], list[int]]:
    """Where sequences that see themselves whole are, and how many they, pages and tiles are."""
    lengths = lengths.astype(np.int32)
    sequences = np.arange(len(lengths), dtype=np.int32)
    indptr = np.cumsum([0, *lengths]).astype(np.int32)
    pages = np.cumsum([0, *(-(-lengths // page_size))]).astype(np.int32)
    start, size, seq = tiles(indptr, lengths, sequences)
    inputs = {
        "positions": np.arange(indptr[-1], dtype=np.int32) - np.repeat(indptr[:-1], lengths),
        "seq_ids": np.repeat(sequences, lengths),
        "page_indptr": pages,
        "page_table": np.arange(pages[-1], dtype=np.int32),
        "tile_start": start,
        "tile_size": size,
        "tile_seq": seq,
        "ends": np.repeat(lengths - 1, lengths),
    }
    named = {prefix + name: values for name, values in inputs.items()}
    return named, [len(lengths), int(pages[-1]), len(start)]


def _check_form(patches: Floats, count: int, width: int) -> None:
    if patches.shape != (count, width) or patches.dtype != np.float32:
        raise RequestError(
            f"an image must be float32[{count}, {width}], not {patches.dtype}{list(patches.shape)}"
        )


def _check_dims(step: Prepared, entry: Entry) -> None:
    if any(not dim.lo <= step.dims.get(dim.name, -1) <= dim.hi for dim in entry.dims):
        raise ArtifactError("the library's program for images is not made for images of its size")
