"""The manifest: what the compile wing writes and the run wing reads, and all they share.

It travels inside a compiled library as JSON. It names the entry points with their symbolic
dims, the launch program of each, the kernels with their schedules, the weights each program
wants and how they are laid out, and the memory plan. It knows no IR: sizes are strings of the
grammar in `sizes`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sterna.base.errors import ArtifactError

FORMAT = 2  # raised by every change that an older reader could misread
ABI = 1  # of the C functions in a library: entry signature, pool layout (codegen/pool.h)
KV_CACHE = "kv_cache"  # what launches call the cache
ADAPTER_IDS = "adapter_ids"  # the input that says which adapter a token has, -1 for none
GIVEN, IS_GIVEN = "given", "is_given"  # inputs: rows in place of embeddings, and of which tokens
PATCHES = "patches"  # the input of what looks at an image
GRID_POSITIONS = "grid_positions"  # row and column of each patch, where images have any size
ROPE_POSITIONS = "rope_positions"  # input: positions of a token in time, height and width
WINDOW = "window_"  # begins the names of the inputs of what looks at each part of an image alone
SIGHT_CACHE = "sight_cache"  # its keys and values: an input that nobody fills
STATES = "states"  # of recurrent layers beside attention: an input that stays on the device
SLOTS, SLOT_INDPTR = "slots", "slot_indptr"  # inputs: each sequence's place among the states
ROWS = "rows"  # what it gives
SEE, PREFILL_GIVEN = "see", "prefill_given"  # entry points of models that take images
FACTORS = ("lora_A", "lora_B")  # what the params of an adapter's two factors are called
CHOOSE = "choose"  # the sampler that is launched as entries are, in work groups
QUERY_TILE = 32  # most tokens of one sequence that attention takes as a tile (dim t)

# In a CPU library the manifest follows this mark and its length (8 bytes, little-endian), so it
# can be read from a library for any machine without executing anything.
MANIFEST_MARK = b"STERNA_MANIFEST_V1".ljust(24, b"\0")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Strict, immutable, keyword-only."""


class Dim(_Record, frozen=True):
    """A symbolic dim with the bounds (inclusive) that the program was compiled for.

    n tokens in the step, b sequences, p page-table entries, r logit rows, t query tiles; of an
    image in windows, w of these, with q pages and u tiles in all.
    """

    name: str
    lo: int
    hi: int


class Buffer(_Record, frozen=True):
    """A tensor a program touches. `shape` holds size expressions; `offset` is in the arena."""

    name: str
    dtype: str
    shape: tuple[str, ...]
    offset: int = 0


class Param(_Record, frozen=True):
    """A weight as the kernels read it.

    `name` is the tensor's name in the model folder, `shape` and `dtype` are those of the file.
    `row_tile` 0: as it is. Otherwise rows are interleaved for SIMD: a file tensor [N, W]
    becomes [ceil(N / row_tile), W, row_tile], rows past N zero; with several `streams`
    [streams, ceil(N / row_tile), W, row_tile / streams], an equal part of each tile in each. An
    `adapter`'s factors are not in the model folder: see AdapterRoom.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_tile: int = 0
    streams: int = 1
    adapter: bool = False


class Launch(_Record, frozen=True, tag="launch"):
    """Run one kernel. `args` name buffers; "{i}" in a weight's name is the layer it works on.

    In a repeat that is layer `first + stride * var + layer`. Caches and states hold it under its
    number, unless only some layers have any: then under `row + row_stride * var`.
    """

    kernel: str
    args: tuple[str, ...]
    layer: int = 0
    row: int | None = None
    row_stride: int = 0


class Repeat(_Record, frozen=True, tag="repeat"):
    """Run `body` for `var` in 0..count: equal layers are compiled once.

    A body spans `stride` layers, the first run of it those from layer `first` on.
    """

    var: str
    count: int
    body: tuple[Launch, ...]
    first: int = 0
    stride: int = 1


class Phase(_Record, frozen=True):
    """One launch of work groups: function `symbol` of the artifact's code.

    It takes the buffers at these positions of the kernel's arguments, then the kernel's dims as
    i32; a position that comes again is the next part of a buffer (see Manifest). `groups` is a size
    expression over the dims; each group has `threads` threads, of which `lanes` side by side
    exchange values in registers.
    """

    symbol: str
    groups: str
    threads: int
    buffers: tuple[int, ...]
    writes: tuple[int, ...]  # of these buffers, those that it stores to
    shared_bytes: int = 0
    lanes: int = 0


class Constant(_Record, frozen=True):
    """A small tensor known at compile time; its bytes lie in the artifact."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Blob(_Record, frozen=True):
    """Bytes behind the manifest, in this order: the code first, then each constant's data."""

    name: str
    size: int
    sha256: str


class Kernel(_Record, frozen=True):
    """A compiled kernel: cost formulas in the dims, how it was scheduled, how it is launched.

    `bytes` counts what must move at least (each operand once), `flops` the arithmetic.
    `context` in a formula is the number of cached tokens a query attends to.
    """

    name: str
    op: str
    schedule: str
    flops: str
    bytes: str
    items: str  # independent work items shared among threads
    dims: tuple[str, ...] = ()  # arguments after the buffers; "layer" is its layer, or row
    phases: tuple[Phase, ...] = ()  # none in a library whose entry points are functions


class Entry(_Record, frozen=True):
    """One specialization of the model's forward pass: prefill, decode or verify.

    Its products take rows of x in tiles of `tile`: fewer cost what so many do.
    """

    name: str
    symbol: str
    dims: tuple[Dim, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    arena: tuple[Buffer, ...]
    arena_bytes: int
    scratch_bytes: int  # for each thread
    steps: tuple[Launch | Repeat, ...]
    tile: int = 1


class AdapterRoom(_Record, frozen=True):
    """Up to `count` LoRA adapters, of ranks up to `rank`, beside the weights of `modules`.

    A module is the path of a layer's weight, "{i}" for the number of the layer, without the last
    component. The factors are the params M.lora_A [count * rank, in] and M.lora_B
    [count * rank, out]: adapter e in rows from e * rank on, unused ones zero, the second of them
    transposed and scaled.
    """

    count: int
    rank: int
    modules: tuple[str, ...]


# What products see of their other factor: codes of 16 or 8 bits; floats of 16 bits, where hardware
# multiplies them; or what it is.
Activations = Literal["i16", "i8", "f16", "bf16", "f32"]
# What the cache keeps of a key or value: a float, or 8 bits and a scale for each token and head.
KVDtype = Literal["f16", "q8"]


class CompileOptions(_Record, frozen=True):
    """Overrides of what mlc-chat-config.json says; None keeps it."""

    context_window_size: int | None = None
    prefill_chunk_size: int | None = None
    max_batch_size: int | None = None
    sliding_window_size: int | None = None
    attention_sink_size: int | None = None
    activations: Activations | None = None  # None: see passes/products.py
    kv_dtype: KVDtype | None = None  # of the KV cache; None: what the scheme computes in
    adapters: AdapterRoom | None = None


class Vision(_Record, frozen=True):
    """How a model takes images: the entry point "see" makes rows, "prefill_given" reads them.

    An image is a square of `image_size` pixels, cut into patches of `patch_size` a side. A program
    takes `lead` rows of zeros before those of the patches, and its first `dropped` rows of
    result are not given on. Each row that is stands for one token `image_token` of the prompt.

    With `merge` images have any size, `image_size` is 0, and `merge` * `merge` patches are one row
    of at most `most`. Patches then come square by square, `frames` times each; where there is a
    `window`, the rows of `window` * `window` squares see each other alone in some layers. With
    `axes` a token has so many positions, and what follows an image goes on behind its longer side.
    """

    image_token: int
    image_size: int
    patch_size: int
    lead: int = 1
    dropped: int = 1
    merge: int = 0
    most: int = 0
    frames: int = 1
    window: int = 0
    axes: int = 0

    @property
    def patches(self) -> int:
        """Of an image, where all have one size."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens of a prompt that an image takes, where all have one size."""
        return self.lead + self.patches - self.dropped


class KVCache(_Record, frozen=True):
    """The paged key/value cache: `page_size` tokens a page, the same pages in every layer.

    `dtype` is f32, f16, bf16, or q8: numbers of 8 bits, with an f16 scale for each token and head.
    A `recurrent` model's page is the state of one sequence, `head_dim` elements in each layer. Its
    first page is all that a sequence has, and a state cannot go back to an earlier token.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    page_bytes: int  # keys and values of one page in all layers
    recurrent: bool = False

    @property
    def bytes_per_token(self) -> int:
        return self.page_bytes // self.page_size


class States(_Record, frozen=True):
    """What recurrent layers keep beside the KV cache of others: a slot for each running sequence.

    A slot has `elements` numbers of f32 in each of `layers`. All slots are one input of the entry
    points that nobody fills: a sequence's first step clears its own. A state cannot go back to an
    earlier token.
    """

    slots: int
    layers: int
    elements: int

    @property
    def slot_bytes(self) -> int:
        return self.layers * self.elements * 4


# How the hidden states of a text become one vector: the first token's, the last one's, the mean.
Pooling = Literal["cls", "last", "mean"]


class Model(_Record, frozen=True):
    """What the library was compiled for; the engine refuses a folder that differs."""

    model_type: str
    quantization: str
    fingerprint: str  # hash of all that shapes the program: config, scheme
    vocab_size: int
    context_window_size: int
    prefill_chunk_size: int
    max_batch_size: int
    sliding_window_size: int = -1
    attention_sink_size: int = 0
    pooling: Pooling | None = None  # of an embedding model, whose steps give hidden states
    normalize: bool = False  # whether its embeddings have length 1
    causal: bool = True  # False: every token sees its whole sequence, which is one step


class Manifest(_Record, frozen=True):
    """All of the above, for one library.

    A weight of more than `part_bytes` is bound in parts, each of so many bytes but the last; 0: no
    weight is. Where a launch has more groups than a device takes side by side, they are a grid.
    """

    format: int
    sterna: str
    target: str
    features: tuple[str, ...]
    model: Model
    kv_cache: KVCache
    params: tuple[Param, ...]
    entries: tuple[Entry, ...]
    kernels: tuple[Kernel, ...]
    constants: tuple[Constant, ...] = ()
    blobs: tuple[Blob, ...] = ()
    sampler: Entry | None = None  # tokens from logits; None where the host does it all
    carried: tuple[str, ...] = ()  # targets of all programs in the library, where it has several
    part_bytes: int = 0
    adapters: AdapterRoom | None = None
    vision: Vision | None = None
    states: States | None = None
    options: CompileOptions = CompileOptions()  # that were asked for

    @property
    def symbol(self) -> str:
        """What the library calls this record."""
        return manifest_symbol(self.carried.index(self.target) if self.carried else 0)

    @property
    def programs(self) -> tuple[Entry, ...]:
        """Everything the library can be asked to run."""
        return self.entries if self.sampler is None else (*self.entries, self.sampler)

    @property
    def launched(self) -> tuple[Entry, ...]:
        """Everything whose inputs, outputs and arena lie on the device; see CHOOSE."""
        own = self.sampler is not None and self.sampler.name == CHOOSE
        return self.programs if own else self.entries

    def entry(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise ArtifactError(f"the library has no entry point {name!r}")


def manifest_symbol(position: int) -> str:
    """The name of the manifest of a library's first, second... program."""
    return f"sterna_manifest_{position}" if position else "sterna_manifest"


def encode(manifest: Manifest) -> bytes:
    """Manifest to JSON."""
    return msgspec.json.encode(manifest)


def decode(data: bytes) -> Manifest:
    """JSON to Manifest; ArtifactError when it is malformed or of another format version."""
    try:
        found: Any = msgspec.json.decode(data)
        version = found.get("format") if isinstance(found, dict) else None
        if version != FORMAT:
            raise ArtifactError(
                f"the library's manifest has format {version}, this Sterna reads {FORMAT}; "
                "compile the model again"
            )
        return msgspec.convert(found, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"the library's manifest is malformed: {error}") from None
