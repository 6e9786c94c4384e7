"""The one table of quantization schemes: packing, kernels, docs and tests all read it.

In: a name such as "q4f16_1". Out: a frozen `Scheme` that says how many bits a code has, how many
weights share a scale, how codes lie in 32-bit words, and what all of it costs in bytes.
It does not know tensors (`pack.py`) or how shapes of a foreign file reveal a variant (`infer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import gcd
from typing import Literal

from sterna.base.dtype import BF16, F16, F32, U8, U32, DType
from sterna.base.errors import UsageError

Layout = Literal["NK", "KN"]
Packing = Literal["word", "stream"]
Kind = Literal[
    "linear",
    "head",
    "embedding",
    "experts",
    "router",
    "low_rank",
    "norm",
    "bias",
    "exact",
    "vision",
]

_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a weight `W[N, K]` is stored; groups always run along K, the axis a matmul sums over.

    `bits` of a code (of a value, when nothing is quantized); `compute` is the dtype of activations,
    scales and unquantized weights; `group` is the number of weights that share a scale, 0 when not
    quantized. `layout` "KN" stores the packed tensors of a linear transposed. `packing` "word" puts
    `32 // bits` codes into each uint32 and leaves the rest of the word 0 (so MLC packs 3 bits: 10
    codes a word); "stream" runs codes across word borders. Both are least significant bit first.
    `affine` adds a u8 zero point a group. `ends` says whether embedding and head are quantized.

    The rest describes weights that other programs quantized; they are read, never written anew:
    `zero` is the code that stands for 0 where that is not MLC's; `scale` the dtype of scales where
    it is not `compute`; `minimum` adds one number a group to each value; of `outer` weights the
    scales and minimums are small integers with a common f16 factor. Codes stand for themselves,
    or for the entries of `levels`, or are floats with a sign, `exponent` bits and a mantissa.
    `indexed` columns say themselves which group they belong to.
    """

    name: str
    bits: int
    compute: DType
    group: int = 0
    layout: Layout = "NK"
    packing: Packing = "word"
    affine: bool = False
    ends: bool = True
    zero: int | None = None
    scale: DType | None = None
    minimum: bool = False
    outer: int = 0
    levels: tuple[float, ...] = ()
    exponent: int = 0
    indexed: bool = False

    def __post_init__(self) -> None:
        if self.unit % self.codes_per_period or self.group < 0:
            raise UsageError(
                f"{self.name}: a group of {self.group} weights of {self.bits} bits does not fill "
                f"whole 32-bit words; with {self.packing!r} packing the group must be a multiple "
                f"of {self.codes_per_period}"
            )

    @property
    def is_quantized(self) -> bool:
        return self.group > 0

    @property
    def is_mlc(self) -> bool:
        """Whether the scheme is one that a name and the shapes in a file say all of."""
        return self.is_plain_grid and self.zero is None and self.scale is None

    @property
    def unit(self) -> int:
        """Weights that are stored whole: rows are filled up to a multiple of it."""
        return self.outer or self.group

    @property
    def is_plain_grid(self) -> bool:
        """Whether a value is (code - zero) * scale, with one scale and one zero a group."""
        return not (self.minimum or self.outer or self.levels or self.exponent or self.indexed)

    @property
    def mantissa(self) -> int:
        """Bits of a float code's mantissa."""
        return self.bits - 1 - self.exponent

    @property
    def float_unit(self) -> float:
        """The smallest positive value of a float code."""
        power: float = 2.0 ** (2 - 2 ** (self.exponent - 1) - self.mantissa)
        return power

    @property
    def codes_per_period(self) -> int:
        """Number of codes after which the bit pattern starts again at a word border."""
        if self.packing == "word":
            return _WORD_BITS // self.bits
        return _WORD_BITS // gcd(_WORD_BITS, self.bits)

    @property
    def words_per_period(self) -> int:
        return 1 if self.packing == "word" else self.bits // gcd(_WORD_BITS, self.bits)

    @property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """(word, shift) of each code of a period; a code may go on in the next word's low bits."""
        if self.packing == "word":
            return tuple((0, i * self.bits) for i in range(self.codes_per_period))
        return tuple(divmod(i * self.bits, _WORD_BITS) for i in range(self.codes_per_period))

    @property
    def words_per_unit(self) -> int:
        return self.unit // self.codes_per_period * self.words_per_period

    @property
    def bias(self) -> int:
        """What a reader subtracts from a code; 0 when affine: the zero point takes its place."""
        if self.affine or self.minimum or self.levels or self.exponent or not self.is_quantized:
            return 0
        return 2 ** (self.bits - 1) - 1 if self.zero is None else self.zero

    @property
    def max_code(self) -> int:
        """The largest code a writer produces: symmetric schemes leave the topmost one unused."""
        return 2**self.bits - 1 if self.affine else 2 * self.bias

    @property
    def storage(self) -> DType:
        """Dtype of `q_weight`, or of `weight` when nothing is quantized."""
        return U32 if self.is_quantized else self.compute

    @property
    def scale_on_disk(self) -> DType:
        """Dtype of `q_scale` in a file: MLC's `f32-to-bf16` records halve float32 scales."""
        if self.scale is not None:
            return self.scale
        return BF16 if self.compute == F32 else self.compute

    @property
    def scale_dtype(self) -> DType:
        """Dtype of `q_scale` in memory."""
        return self.compute if self.scale is None else self.scale

    @property
    def bytes_for_32_weights(self) -> float:
        """Bytes on disk; a float32 scale takes two more in memory (`scale_on_disk`)."""
        if not self.is_quantized:
            return 32.0 * self.compute.bytes
        group = self.scale_on_disk.bytes * (2 if self.minimum else 1)
        group += U8.bytes if self.affine else 0
        outer = F16.bytes * (2 if self.minimum else 1) if self.outer else 0
        unit = U32.bytes * self.words_per_unit + group * self.unit // self.group + outer
        return 32 * unit / self.unit

    @property
    def bits_per_weight(self) -> float:
        return self.bytes_for_32_weights * 8 / 32

    def quantizes(self, kind: Kind) -> bool:
        """Whether a tensor of this kind of layer is packed.

        Norms, biases, routers, what makes gates, and all that looks at images never are.
        """
        if not self.is_quantized or kind in (
            "norm", "bias", "router", "low_rank", "exact", "vision",
        ):  # fmt: skip
            return False
        return self.ends or kind not in ("embedding", "head")

    def for_weight(self, path: str, kind: Kind) -> Scheme:
        """The scheme of one weight: the same for all of a kind. `Recipe` knows others."""
        return self.for_kind(kind)

    def for_kind(self, kind: Kind) -> Scheme:
        """The scheme as it applies to one kind of layer.

        What is not quantized becomes the q0 scheme of the same compute dtype, "exact" vectors that
        of float32; embeddings (read a row at a time) and stacked experts stay NK where linears are
        KN, as in MLC.
        """
        if kind == "exact":
            return SCHEMES["q0f32"]
        if not self.quantizes(kind):
            return SCHEMES[f"q0{self.compute}"]
        if self.layout == "KN" and kind in ("embedding", "experts"):
            return replace(self, layout="NK")
        return self


def _table(*rows: Scheme) -> dict[str, Scheme]:
    return {row.name: row for row in rows}


_GROUPED = (
    Scheme("q4f16_1", 4, F16, group=32),
    Scheme("q4f32_1", 4, F32, group=32),
    Scheme("q4bf16_1", 4, BF16, group=32),
    Scheme("q4f16_0", 4, F16, group=128, layout="KN"),
    Scheme("q3f16_1", 3, F16, group=32, packing="stream"),
    Scheme("q8f16_1", 8, F16, group=32),
)

SCHEMES: dict[str, Scheme] = _table(
    Scheme("q0f16", 16, F16),
    Scheme("q0f32", 32, F32),
    Scheme("q0bf16", 16, BF16),
    *_GROUPED,
    *(replace(row, name=row.name + "z", affine=True) for row in _GROUPED),
)

# Variants that MLC writes and Sterna reads; `infer` finds them from the shapes in a file.
MLC_SCHEMES: dict[str, Scheme] = _table(
    Scheme("q3f16_0", 3, F16, group=40, layout="KN"),
    Scheme("q3f16_1", 3, F16, group=40),
    Scheme("q4f16_0", 4, F16, group=32, layout="KN"),
    Scheme("q4bf16_0", 4, BF16, group=32, layout="KN"),
    Scheme("q4f16_2", 4, F16, group=32, ends=False),
)


def scheme(name: str) -> Scheme:
    """Look a scheme up by name, or raise UsageError with the names there are.

    A name that both have gives Sterna's variant (what a file holds is for `infer` to say), a name
    that only MLC has gives MLC's.
    """
    found = SCHEMES.get(name) or MLC_SCHEMES.get(name)
    if found is None:
        close = get_close_matches(name, SCHEMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        only_mlc = [known for known in MLC_SCHEMES if known not in SCHEMES]
        raise UsageError(
            f"quantization {name!r} is not known; {hint}known: {', '.join(SCHEMES)}; "
            f"read from MLC folders as well: {', '.join(only_mlc)}"
        )
    return found


def docs_table() -> str:
    """The table of schemes as markdown, as the documentation shows it."""
    head = "| scheme | bits | compute dtype | group | layout | zero point | bytes for 32 weights |"
    rows = [
        f"| {row.name} | {row.bits} | {row.compute} | {row.group or 'none'} | {row.layout} "
        f"| {'u8' if row.affine else 'none'} | {row.bytes_for_32_weights:g} |"
        for row in SCHEMES.values()
    ]
    return "\n".join([head, "|" + "---|" * 7, *rows, ""])
