"""What looks at an image: patches of pixels to rows that stand where a prompt has its image.

A tower is an encoder in which every patch sees the whole image, and a projector takes what it
makes into the space of the model's embeddings. `Sight.traced` is its entry point: here for images
of one size, in `grid_vision` for those of any. Knows no pixels: the rows of patches come cut and
normalized. Weights here are never quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sterna.base.artifact import PATCHES, SIGHT_CACHE, Vision
from sterna.base.dtype import F32, I32, DType
from sterna.ir.expr import Var
from sterna.ir.graph import IRModule
from sterna.nn.attention import Step
from sterna.nn.decoder import DecoderLayer, trace_layers
from sterna.nn.linear import Embedding
from sterna.nn.module import Layers, Module, Parameter
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor, Trace

_KEPT = ("norm", "bias", "exact")  # kinds that are what they are wherever they stand


@dataclass(frozen=True, slots=True)
class VisionOptions:
    """Sizes of a tower for square images of `image_size` pixels, cut into patches.

    Of its layers the first `layers` are computed. A row before those of the patches stands for the
    whole image; `whole` says whether it is given on too. Token `image_token` of a prompt
    marks where the rows go.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: int
    image_size: int
    patch_size: int
    norm_eps: float
    act: str
    projector_act: str
    projector_bias: bool
    image_token: int
    whole: bool = False
    channels: int = 3

    @property
    def patch_width(self) -> int:
        """Numbers of a patch: channel by channel, row by row."""
        return self.channels * self.patch_size**2

    @property
    def rows(self) -> int:
        """Rows that the tower computes for an image."""
        return (self.image_size // self.patch_size) ** 2 + 1


class PatchEmbedding(Module):
    """A convolution whose windows do not overlap: a product with each patch."""

    def __init__(self, o: VisionOptions, dtype: DType) -> None:
        side = o.patch_size
        self.weight = Parameter((o.hidden_size, o.channels, side, side), dtype, "vision")

    def __call__(self, patches: Tensor) -> Tensor:
        """[n, patch_width] -> [n, hidden] in f32."""
        trace = patches.trace
        return trace.emit("matmul", patches, trace.emit("flatten", self.weight.read(trace)))


class PatchEmbeddings(Module):
    """Patches and their places; the first row is a learned one."""

    def __init__(self, o: VisionOptions, dtype: DType) -> None:
        self.class_embedding = Parameter((o.hidden_size,), dtype, "vision")
        self.patch_embedding = PatchEmbedding(o, dtype)
        self.position_embedding = Embedding(o.rows, o.hidden_size, dtype)

    def __call__(self, patches: Tensor, positions: Tensor) -> Tensor:
        own = self.class_embedding.read(patches.trace)
        x = patches.trace.emit("lead", self.patch_embedding(patches), own)
        return x + self.position_embedding(positions)


class Tower(Module):
    """Embeddings of patches, a norm, and the layers whose states are wanted."""

    def __init__(
        self, embeddings: PatchEmbeddings, norm: Norm, layers: Layers[DecoderLayer]
    ) -> None:
        self.embeddings = embeddings
        self.norm = norm
        self.layers = layers


class Sight(Module):
    """A tower and its projector; `names` as CausalLM's, for components below here alone.

    `context` below is the most tokens of a sequence.
    """

    transparent = True

    def __init__(self, tower: Module, projector: Module, names: Mapping[str, str]) -> None:
        self.tower = tower
        self.projector = projector
        self.names = names
        for _, parameter in super().parameters():
            if parameter.kind not in _KEPT:
                parameter.kind = "vision"

    def most_rows(self, context: int) -> int:
        """Rows that the tower computes for the largest image."""
        raise NotImplementedError

    def told(self, context: int) -> Vision:
        """What the manifest says."""
        raise NotImplementedError

    def traced(self, page_size: int, context: int) -> IRModule:
        """The pass over one image: (patches, ..., cache) -> (f32 [n, hidden of the model], cache).

        The cache is of the step alone: [p, 1, 2, heads, page_size * head_dim] in f32, the same for
        every layer.
        """
        raise NotImplementedError

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for path, parameter in super().parameters():
            yield prefix + self._renamed(path), parameter

    def named(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for path, parameter in super().named():
            yield prefix + self._renamed(path), parameter

    def _renamed(self, path: str) -> str:
        return ".".join(self.names.get(part, part) for part in path.split("."))


class SquareSight(Sight):
    """Looks at images of one size, of which every patch sees the whole."""

    def __init__(
        self, tower: Tower, projector: Module, options: VisionOptions, names: Mapping[str, str]
    ) -> None:
        super().__init__(tower, projector, names)
        self.options = options

    def most_rows(self, context: int) -> int:
        return self.options.rows

    def told(self, context: int) -> Vision:
        o = self.options
        return Vision(
            image_token=o.image_token,
            image_size=o.image_size,
            patch_size=o.patch_size,
            dropped=0 if o.whole else 1,
        )

    def traced(self, page_size: int, context: int) -> IRModule:
        return trace_sight(self, page_size)


def trace_sight(sight: SquareSight, page_size: int) -> IRModule:
    """See Sight.traced: every patch sees the whole image."""
    o = sight.options
    n, t = Var("n", I32, 1, o.rows), Var("t", I32, 1, o.rows)
    b, p = Var("b", I32, 1, 1), Var("p", I32, 1, -(-o.rows // page_size))
    main = Trace("see")
    patches = main.param(PATCHES, (n, o.patch_width), F32)
    dim = o.hidden_size // o.num_attention_heads
    shape = (p, 1, 2, o.num_attention_heads, page_size * dim)
    cache = main.param(SIGHT_CACHE, shape, F32)
    shapes = {
        "positions": (n,), "seq_ids": (n,), "page_indptr": (b + 1,), "page_table": (p,),
        "tile_start": (t,), "tile_size": (t,), "tile_seq": (t,), "ends": (n,),
    }  # fmt: skip
    index = {name: main.param(name, dims, I32) for name, dims in shapes.items()}
    step = Step(**index)  # type: ignore[arg-type]  # the rest has defaults
    tower = sight.tower
    assert isinstance(tower, Tower), "made so"
    x = tower.norm(tower.embeddings(patches, step.positions))
    x, cache, functions = trace_layers(main, tower.layers, x, cache, step)
    projected = sight.projector(x)  # type: ignore[operator]
    forward = main.function(projected.cast(F32), cache)
    return IRModule(
        {forward.name: forward, **functions}, forward.name, (n, b, p, t), main.constants
    )
