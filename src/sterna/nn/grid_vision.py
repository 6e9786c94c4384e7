"""What looks at images of any size: an encoder whose patches mostly see their own window alone.

In: patches of an image in the order of its windows, each `merge` * `merge` of them, a square, side
by side, and where in the image they are. Out: a row for each square. Where the windows are says
the caller, as pages and tiles of a sequence for each; layers that see all have those of one
sequence. Sources: Qwen2.5-VL (arXiv:2502.13923); two-dimensional rotary embedding as in
Qwen2-VL (arXiv:2409.12191).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sterna.base.artifact import (
    GRID_POSITIONS,
    PATCHES,
    QUERY_TILE,
    SIGHT_CACHE,
    WINDOW,
    Vision,
)
from sterna.base.dtype import F32, I32, DType
from sterna.ir.expr import ExprLike, Var
from sterna.ir.graph import IRModule
from sterna.nn.attention import Step
from sterna.nn.decoder import DecoderLayer, Rope, trace_layers
from sterna.nn.layers import PreNormLayer
from sterna.nn.linear import Linear
from sterna.nn.module import Layers, Module, Parameter
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor, Trace
from sterna.nn.vision import Sight

MOST_ROWS = 1280  # of one image, which is a million pixels in patches of 14 a side
_TABLE = "sight.inv_freq"


@dataclass(frozen=True, slots=True)
class GridOptions:
    """Sizes of a tower for images in patches of `patch_size` a side, `frames` times each.

    Layers see windows of `window` * `window` squares, those numbered in `whole` the whole image;
    with a window of 0 all do. `layer_norm` and `gated` are as in DecoderConfig. Token `image_token`
    of a prompt marks where the rows go; a token of the model has `axes` positions.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: int
    patch_size: int
    act: str
    image_token: int
    frames: int = 2
    merge: int = 2
    window: int = 0
    whole: tuple[int, ...] = ()
    layer_norm: bool = False
    gated: bool = True
    theta: float = 10000.0
    norm_eps: float = 1e-6
    channels: int = 3
    axes: int = 3

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def square(self) -> int:
        """Patches that become one row."""
        return self.merge**2

    @property
    def patch_width(self) -> int:
        """Numbers of a patch: channel by channel, frame by frame, row by row."""
        return self.channels * self.frames * self.patch_size**2

    @property
    def order(self) -> list[int]:
        """1 for each layer that sees windows, 0 for the others."""
        return [int(self.window > 0 and i not in self.whole) for i in range(self.layers)]


@dataclass(frozen=True, slots=True)
class WindowedStep(Step):
    """A Step of one image as a whole, and the same of a sequence for each of its windows."""

    window_positions: Tensor | None = None
    window_seq_ids: Tensor | None = None
    window_page_indptr: Tensor | None = None
    window_page_table: Tensor | None = None
    window_tile_start: Tensor | None = None
    window_tile_size: Tensor | None = None
    window_tile_seq: Tensor | None = None
    window_ends: Tensor | None = None

    def of_windows(self) -> Step:
        index = {
            name.removeprefix(WINDOW): tensor
            for name, tensor in self._index().items()
            if name.startswith(WINDOW)
        }
        return Step(**index, angles=self.angles)


class WindowLayer(PreNormLayer):
    """A layer in which patches see their own window."""

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        assert isinstance(step, WindowedStep), "a tower with windows has such steps"
        return super().__call__(x, cache, step.of_windows())


class GridPatchEmbedding(Module):
    """A convolution over frames and pixels whose windows do not overlap."""

    def __init__(self, o: GridOptions, dtype: DType) -> None:
        side = o.patch_size
        shape = (o.hidden_size, o.channels, o.frames, side, side)
        self.weight = Parameter(shape, dtype, "vision")

    def __call__(self, patches: Tensor) -> Tensor:
        """[n, patch_width] -> [n, hidden] in f32."""
        trace = patches.trace
        return trace.emit("matmul", patches, trace.emit("flatten", self.weight.read(trace)))


class GridTower(Module):
    """Embeddings of patches and layers."""

    def __init__(self, embeddings: GridPatchEmbedding, layers: Layers[DecoderLayer]) -> None:
        self.embeddings = embeddings
        self.layers = layers


class Merger(Module):
    """second(gelu(first(the normalized patches of a square, side by side)))."""

    def __init__(self, norm: Norm, o: GridOptions, width: int, dtype: DType) -> None:
        both = o.hidden_size * o.square
        self.norm = norm
        self.first = Linear(both, both, dtype, bias=True)
        self.second = Linear(both, width, dtype, bias=True)
        self.square = o.square

    def __call__(self, x: Tensor) -> Tensor:
        """[n * square, hidden] -> [n, width]."""
        joined = x.trace.emit("join_rows", self.norm(x), count=self.square)
        return self.second(x.trace.emit("gelu", self.first(joined)))


class GridSight(Sight):
    """A tower and the merger behind it; `rope` turns by rows and columns."""

    def __init__(
        self,
        tower: GridTower,
        merger: Merger,
        options: GridOptions,
        rope: Rope,
        names: Mapping[str, str],
    ) -> None:
        super().__init__(tower, merger, names)
        self.options = options
        self.rope = rope

    def most_squares(self, context: int) -> int:
        """Rows of the largest image: half a sequence may be one."""
        return max(1, min(MOST_ROWS, context // 2))

    def most_rows(self, context: int) -> int:
        return self.most_squares(context) * self.options.square

    def told(self, context: int) -> Vision:
        o = self.options
        return Vision(
            image_token=o.image_token,
            image_size=0,
            patch_size=o.patch_size,
            lead=0,
            dropped=0,
            merge=o.merge,
            most=self.most_squares(context),
            frames=o.frames,
            window=o.window,
            axes=o.axes,
        )

    def traced(self, page_size: int, context: int) -> IRModule:
        """Dim n counts squares; w, q and u are windows, their pages and their tiles."""
        o, main = self.options, Trace("see")
        tower, most = self.tower, self.most_squares(context)
        assert isinstance(tower, GridTower), "made so"
        n = Var("n", I32, 1, most)
        rows, most_rows = n * o.square, most * o.square
        own = _Dims(
            Var("b", I32, 1, 1),
            Var("p", I32, 1, -(-most_rows // page_size)),
            Var("t", I32, 1, -(-most_rows // QUERY_TILE)),
        )
        bounds = _most(o, most, page_size)
        windows = _Dims(*(Var(d, I32, 1, m) for d, m in zip("wqu", bounds, strict=True)))
        patches = main.param(PATCHES, (rows, o.patch_width), F32)
        pages = windows.pages if o.window else own.pages
        heads = o.num_attention_heads
        cache = main.param(SIGHT_CACHE, (pages, 1, 2, heads, page_size * o.head_dim), F32)
        grid = main.param(GRID_POSITIONS, (rows, 2), I32)
        index = _index(main, rows, own, "")
        if o.window:
            index |= _index(main, rows, windows, WINDOW)
        step = WindowedStep(**index, angles=self.rope.angles(grid, _TABLE))
        x = tower.embeddings(patches)
        x, cache, functions = trace_layers(main, tower.layers, x, cache, step)
        merged = self.projector(x)  # type: ignore[operator]
        forward = main.function(merged.cast(F32), cache)
        dims = (n, *own.all, *(windows.all if o.window else ()))
        return IRModule({forward.name: forward, **functions}, forward.name, dims, main.constants)


@dataclass(frozen=True, slots=True)
class _Dims:
    sequences: Var
    pages: Var
    tiles: Var

    @property
    def all(self) -> tuple[Var, ...]:
        return self.sequences, self.pages, self.tiles


def _index(main: Trace, rows: ExprLike, d: _Dims, prefix: str) -> dict[str, Tensor]:
    shapes = {
        "positions": rows, "seq_ids": rows, "page_indptr": d.sequences + 1, "page_table": d.pages,
        "tile_start": d.tiles, "tile_size": d.tiles, "tile_seq": d.tiles, "ends": rows,
    }  # fmt: skip
    return {prefix + name: main.param(prefix + name, (size,), I32) for name, size in shapes.items()}


def _most(o: GridOptions, most: int, page_size: int) -> Sequence[int]:
    """Windows, their pages and their tiles of the image that has most of them."""
    if not o.window:
        return 1, 1, 1
    found = np.zeros(3, np.int64)
    for high in range(1, most + 1):  # wider images of as many rows have more of everything
        sides = (_parts(high, o.window), _parts(most // high, o.window))
        sizes = np.outer(*sides).ravel() * o.square
        units = np.array([[1], [page_size], [QUERY_TILE]])
        counts = (-(-sizes // units)).sum(1)
        counts[0] = len(sizes)
        found = np.maximum(found, counts)
    return [int(count) for count in found]


def _parts(total: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A line cut into parts of `size`, the last of what is left."""
    return np.minimum(size, total - np.arange(0, total, size))
