"""Targets: what the compile wing may know about hardware, one capability row each.

A spec such as "cpu", "cpu:x86-64-v3" or "cpu:aarch64-macos" parses to a frozen Target. Everyone
else asks for capabilities (`target.vector_bytes`, `target.fma`), never for a name: names appear
in the rows below and in the renderer, device and table that a row points to.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, replace

from sterna.base.cpu_features import cpu_features
from sterna.base.errors import UsageError

SMALL = ("f16", "bf16", "i8", "u8", "bool")


@dataclass(frozen=True, slots=True)
class MatrixUnit:
    """What the threads of a subgroup do together: c += a b, of [rows, depth] and [depth, columns].

    a and b are of one dtype, one of `operands`. c is f32 and lies in the threads' registers; a and
    b are shared. `row_bits` and `column_bits` say where in c an element lies that a thread keeps,
    bit by bit, the highest first: "l2" is bit 2 of the thread's number in its subgroup, "s0" bit 0
    of the element's among the thread's own. In which order a unit adds, and how it rounds between,
    is its own; sums of whole numbers below 2**24 are exact on all of them.

    A unit with `most_rows` multiplies tiles of several sizes: twice the rows, and again, up to
    that many, each with what it would give alone; and any multiple of its depth up to `most_depth`.

    Of an `opaque` unit nobody tells where an element lies: c is cleared, multiplied into and stored
    as a whole. The bits then only share it out among the threads of the loop program; a thread's
    own are the last along a row.
    """

    rows: int
    columns: int
    depth: int
    row_bits: str
    column_bits: str
    operands: tuple[str, ...] = ("f16",)
    form: str = ""  # tells units of one shape apart in a kernel's source
    most_rows: int = 0
    most_depth: int = 0
    octets: bool = False  # a and b lie in blocks of 8 rows by 8 elements, not row by row
    opaque: bool = False

    @property
    def lanes(self) -> int:
        """Threads that take part."""
        return 1 << sum(bit[0] == "l" for bit in f"{self.row_bits} {self.column_bits}".split())

    @property
    def kept(self) -> int:
        """Elements of c in each thread."""
        return self.rows * self.columns // self.lanes

    @property
    def shape(self) -> str:
        """What units are told apart by, such as "16x8x16/32"."""
        shape = f"{self.rows}x{self.columns}x{self.depth}/{self.lanes}"
        return f"{shape} opaque" if self.opaque else shape

    def fitted(self, rows: int, depth: int) -> MatrixUnit:
        """The largest that divides tiles of `rows` and sums of `depth`; itself, if it has one size.

        What it has more of rows are a thread's own, bits above those of the smallest.
        """
        if not self.most_rows:
            return self
        more = 0
        while self.rows << more < self.most_rows and rows % (self.rows << more + 1) == 0:
            more += 1
        deep = (d for d in range(self.most_depth, self.depth, -self.depth) if depth % d == 0)
        first = self.kept.bit_length() - 1
        bits = [*(f"s{first + i}" for i in reversed(range(more))), self.row_bits]
        return replace(
            self, rows=self.rows << more, depth=next(deep, self.depth), row_bits=" ".join(bits)
        )


@dataclass(frozen=True, slots=True)
class Target:
    """Capabilities of one kind of hardware.

    `renderer`, `device` and `table` name the module or file that serves the row in `codegen`,
    `runtime` and `schedule/tables`. Sizes are in bytes; a capability a row lacks is 0 or False.
    """

    spec: str
    renderer: str
    device: str
    table: str
    triple: str = ""  # of the toolchain, e.g. "x86_64-linux-gnu"
    mcpu: str = ""
    architectures: tuple[str, ...] = ()  # of GPUs, for which machine code is made; none: source
    features: tuple[str, ...] = ()  # what the machine must have before a library is loaded
    suffix: str = ".so"
    vector_bytes: int = 0  # width of one SIMD register
    vector_registers: int = 0
    fma: bool = False
    float16: bool = False  # f16 arithmetic; f16 storage is always possible
    integers64: bool = False  # arithmetic on whole numbers of 64 bits
    pair_products: bool = False  # sums of two i16 products are fast: activations become codes
    byte_pairs: bool = False  # bytes are multiplied and added into pairs of i16, not into one i32
    bf16_pairs: bool = False  # two products of bf16 are added to a sum in f32 at once
    byte_tiles: bool = False  # 2 rows of 8 bytes are multiplied with 2 columns of them at once
    group_threads: int = 0  # most threads of a work group; 0: there are none
    subgroup: int = 0  # threads side by side that surely exchange values in registers
    unit: MatrixUnit | None = None  # that multiplies matrices
    shared_bytes: int = 0  # of a work group
    load_bytes: int = 0  # that a thread reads at once; 0: a number at a time
    small_numbers: tuple[str, ...] = SMALL  # dtypes below 32 bits that a kernel can store
    most_buffers: int = 0  # that a kernel may take
    most_buffer_bytes: int = 0  # of one buffer; 0: no limit but memory
    split_buffers: bool = False  # larger weights are bound in parts
    buffer_align: int = 64  # of a tensor inside a larger buffer
    page_bytes: int = 4096
    carried: tuple[str, ...] = ()  # targets whose programs share one library, least demanding first
    packaged: tuple[str, ...] = ()  # targets whose programs share a folder for browsers, best first
    barriers: bool = True  # threads of a group may wait for each other

    @property
    def kind(self) -> str:
        """What devices for it are called."""
        return self.spec.partition(":")[0]

    def lanes(self, bits: int = 32) -> int:
        """Elements of `bits` bits in one SIMD register."""
        return max(1, self.vector_bytes * 8 // bits)


def _cpu(triple: str, mcpu: str, **capabilities: object) -> Target:
    row = Target("cpu", renderer="c_library", device="cpu", table="cpu", triple=triple, mcpu=mcpu)
    row = replace(row, pair_products=True, integers64=True)
    return replace(row, **capabilities)  # type: ignore[arg-type]


_V3 = ("avx2", "fma", "f16c", "bmi2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512vl")

# Of one kind of machine, the least demanding first: a bare "cpu" is the last that this one has.
_ARCHITECTURES = {
    "x86-64-v2": _cpu("x86_64", "x86_64_v2", vector_bytes=16, vector_registers=16,
                      byte_pairs=True, features=("ssse3", "sse4_1", "popcnt")),
    "x86-64-v3": _cpu("x86_64", "x86_64_v3", vector_bytes=32, vector_registers=16, fma=True,
                      byte_pairs=True, features=_V3),
    "x86-64-v3-vnni": _cpu("x86_64", "x86_64_v3+avxvnni+fast_dpwssd", vector_bytes=32,
                           vector_registers=16, fma=True, features=(*_V3, "avx_vnni")),
    "x86-64-v4": _cpu("x86_64", "x86_64_v4-prefer_256_bit", vector_bytes=64,
                      vector_registers=32, fma=True, byte_pairs=True, features=_V4),
    "x86-64-v4-vnni": _cpu("x86_64", "x86_64_v4-prefer_256_bit+avx512vnni+fast_dpwssd",
                           vector_bytes=64, vector_registers=32, fma=True,
                           features=(*_V4, "avx512_vnni")),
    "x86-64-v4-bf16": _cpu("x86_64", "x86_64_v4-prefer_256_bit+avx512vnni+avx512bf16+fast_dpwssd",
                           vector_bytes=64, vector_registers=32, fma=True, bf16_pairs=True,
                           features=(*_V4, "avx512_vnni", "avx512_bf16")),
    "aarch64": _cpu("aarch64", "generic", vector_bytes=16, vector_registers=32, fma=True),
    "aarch64-dot": _cpu("aarch64", "generic+dotprod", vector_bytes=16, vector_registers=32,
                        fma=True, features=("asimddp",)),
    "aarch64-i8mm": _cpu("aarch64", "generic+dotprod+i8mm", vector_bytes=16, vector_registers=32,
                         fma=True, byte_tiles=True, features=("asimddp", "i8mm")),
    "wasm32": _cpu("wasm32", "generic+simd128", vector_bytes=16, vector_registers=16),
}  # fmt: skip
# Architectures of which one library carries several, and a machine runs the last that it can.
_CARRIED = {
    "x86-64-multi": ("x86-64-v2", "x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni"),
}
_ALIASES = {"x86_64": "x86-64-v3", "x86-64": "x86-64-v3", "amd64": "x86-64-v3", "arm64": "aarch64"}
_SYSTEMS = {
    "linux": ("linux-gnu.2.17", ".so"),
    "macos": ("macos.12.0", ".dylib"),
    "windows": ("windows-gnu", ".dll"),
    "android": ("linux-android", ".so"),
    "freestanding": ("freestanding", ".wasm"),
}
_HOST_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}

_VULKAN = Target("vulkan", renderer="spirv", device="vulkan", table="work_groups",
                 suffix=".sterna", group_threads=256, shared_bytes=16384, most_buffers=16,
                 most_buffer_bytes=128 << 20, split_buffers=True, buffer_align=256,
                 load_bytes=16)  # fmt: skip

# A folder for browsers has the programs of all rows of this kind; one row's alone if it is named.
_WEBGPU = Target("webgpu", renderer="wgsl", device="webgpu", table="work_groups",
                 suffix=".sterna", group_threads=256, shared_bytes=16384, most_buffers=10,
                 most_buffer_bytes=128 << 20, split_buffers=True, buffer_align=256,
                 load_bytes=16, small_numbers=(),
                 packaged=("webgpu:f16-subgroups", "webgpu:f16", "webgpu:subgroups", "webgpu",
                           "webgpu:barrier-free-subgroups", "webgpu:barrier-free"))  # fmt: skip
_WEBGPU_F16 = replace(_WEBGPU, spec="webgpu:f16", features=("shader-f16",), float16=True,
                      small_numbers=("f16",))  # fmt: skip
_WEBGPU_LANES = replace(_WEBGPU, spec="webgpu:subgroups", features=("subgroups",),
                        subgroup=4)  # fmt: skip
_WEBGPU_F16_LANES = replace(_WEBGPU_F16, spec="webgpu:f16-subgroups",
                            features=("shader-f16", "subgroups"), subgroup=4)  # fmt: skip
_WEBGPU_ALONE = replace(_WEBGPU, spec="webgpu:barrier-free", table="imitated", barriers=False,
                        shared_bytes=0, load_bytes=0, vector_bytes=4)  # fmt: skip
_WEBGPU_ALONE_LANES = replace(_WEBGPU_ALONE, spec="webgpu:barrier-free-subgroups",
                              features=("subgroups",), subgroup=4)  # fmt: skip

# Fragments as the makers describe them: NVIDIA in the PTX ISA ("Matrix Fragments for
# mma.m16n8k16", and for mma.m16n8k8), AMD in the instruction set manuals of CDNA 2 and 3 and of
# RDNA 3 and 4; Apple's is what `thread_elements` has been on every GPU since its seventh family.
_SMALL_MMA = MatrixUnit(16, 8, 8, "s1 l4 l3 l2", "l1 l0 s0")  # since sm_75
_MMA = MatrixUnit(16, 8, 16, "s1 l4 l3 l2", "l1 l0 s0", ("f16", "bf16"))
# wgmma, "Register Fragments" of wgmma.mma_async.m64nNk16: its M are the weight's rows, and its N,
# multiples of 8, are those of x, so that few rows of x fill small tiles.
_WGMMA = MatrixUnit(8, 64, 16, "l1 l0 s0", "l6 l5 s1 l4 l3 l2", ("f16", "bf16"), "", 128, 128, True)
_MFMA = MatrixUnit(16, 16, 16, "l5 l4 s1 s0", "l3 l2 l1 l0", ("f16", "bf16"))
_WMMA = MatrixUnit(16, 16, 16, "s2 s1 s0 l4", "l3 l2 l1 l0", ("f16", "bf16"))
_HALVED_WMMA = MatrixUnit(16, 16, 16, "l4 s2 s1 s0", "l3 l2 l1 l0", ("f16", "bf16"), "_halved")
_SIMDGROUP = MatrixUnit(8, 8, 8, "l4 l2 l1", "l3 l0 s0")
# Vulkan's cooperative matrices: the shape that GPUs have, and the one of drivers on CPUs.
_COOPERATIVE = MatrixUnit(16, 16, 16, "l4 l3 l2 l1", "l0 s2 s1 s0", opaque=True)
_COOPERATIVE_8 = MatrixUnit(8, 8, 8, "l2 l1 l0", "s2 s1 s0", opaque=True)
_VULKAN_MATRIX = replace(_VULKAN, spec="vulkan:matrix", subgroup=32, shared_bytes=32768,
                         unit=_COOPERATIVE)  # fmt: skip

_CUDA = Target("cuda", renderer="cuda", device="cuda", table="cuda", suffix=".sterna",
               fma=True, float16=True, group_threads=1024, shared_bytes=49152, most_buffers=256,
               buffer_align=256, subgroup=32, load_bytes=16)  # fmt: skip
_SM = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_ROCM = replace(_CUDA, spec="rocm", renderer="hip", device="hip", table="work_groups",
                shared_bytes=65536)  # fmt: skip
_CDNA, _RDNA3 = ("gfx90a", "gfx942"), ("gfx1100", "gfx1101", "gfx1151")
_RDNA2, _RDNA4 = ("gfx1030",), ("gfx1201",)
_COMMON = (*_CDNA, "gfx1030", "gfx1100", "gfx1201")
_METAL = Target("metal", renderer="metal", device="metal", table="work_groups", suffix=".sterna",
                fma=True, float16=True, group_threads=1024, shared_bytes=32768, most_buffers=24,
                buffer_align=256, subgroup=32, load_bytes=16)  # fmt: skip


def _machines(
    row: Target, names: tuple[str, ...], subgroup: int, unit: MatrixUnit | None = None
) -> dict[str, Target]:
    """A row for each architecture of a kind of GPU."""
    row = replace(row, subgroup=subgroup, unit=unit)
    return {name: replace(row, spec=f"{row.spec}:{name}", architectures=(name,)) for name in names}


# Mali's shared memory is ordinary memory, so its threads work alone.
_OPENCL = Target("opencl", renderer="opencl", device="opencl", table="work_groups",
                 suffix=".sterna", fma=True, group_threads=256, shared_bytes=32768,
                 most_buffers=64, buffer_align=1024, load_bytes=16)  # fmt: skip

# Kinds whose kernels run in work groups; the detail after the colon picks a row. Without a detail
# CUDA's code is PTX, which every later GPU takes, and ROCm's is for several at once; "source" is
# compiled by the device's own machine. Kinds stand in the order in which a device is preferred.
_GROUPED = {
    "cuda": {
        "": replace(_CUDA, architectures=("sm_75",), unit=_SMALL_MMA),
        "source": replace(_CUDA, spec="cuda:source"),
        **_machines(_CUDA, ("sm_75",), 32, _SMALL_MMA),
        **_machines(_CUDA, _SM, 32, _MMA),
        **_machines(_CUDA, ("sm_90a",), 32, _WGMMA),
    },
    "rocm": {
        "": replace(_ROCM, architectures=_COMMON),
        "source": replace(_ROCM, spec="rocm:source"),
        **_machines(_ROCM, _CDNA, 64, _MFMA),
        **_machines(_ROCM, _RDNA3, 32, _WMMA),
        **_machines(_ROCM, _RDNA2, 32),
        **_machines(_ROCM, _RDNA4, 32, _HALVED_WMMA),
    },
    "metal": {
        "": _METAL,
        "apple7": replace(_METAL, spec="metal:apple7", features=("apple7",), unit=_SIMDGROUP),
    },
    "vulkan": {
        "": _VULKAN,
        "f32": replace(_VULKAN, spec="vulkan:f32", small_numbers=()),
        "subgroups": replace(_VULKAN, spec="vulkan:subgroups", subgroup=8),
        "matrix": _VULKAN_MATRIX,
        "matrix8": replace(_VULKAN_MATRIX, spec="vulkan:matrix8", subgroup=8,
                           unit=_COOPERATIVE_8),
    },
    "opencl": {
        "": _OPENCL,
        "subgroups": replace(_OPENCL, spec="opencl:subgroups", subgroup=16),
        "adreno": replace(_OPENCL, spec="opencl:adreno"),
        "mali": replace(_OPENCL, spec="opencl:mali", table="alone", barriers=False),
    },
    "webgpu": {
        "": _WEBGPU,
        "f16": replace(_WEBGPU_F16, packaged=("webgpu:f16",)),
        "f16-subgroups": replace(_WEBGPU_F16_LANES, packaged=("webgpu:f16-subgroups",)),
        "subgroups": replace(_WEBGPU_LANES, packaged=("webgpu:subgroups",)),
        "barrier-free": replace(_WEBGPU_ALONE, packaged=("webgpu:barrier-free",)),
        "barrier-free-subgroups": replace(
            _WEBGPU_ALONE_LANES, packaged=("webgpu:barrier-free-subgroups",)
        ),
    },
}  # fmt: skip

KINDS = ("cpu", *_GROUPED)

EXAMPLES = (
    "cpu",
    "cpu:x86-64-v3",
    "cpu:aarch64-linux",
    "cpu:aarch64-macos",
    "cpu:x86_64-windows",
    *_GROUPED,
)


def parse_target(spec: str) -> Target:
    """Turn "cpu[:architecture[-system]]" into its row; a bare "cpu" is the best for this machine.

    An x86-64 without a level means v3 (AVX2, FMA): machines since 2013.
    """
    kind, _, detail = spec.partition(":")
    if kind in _GROUPED:
        return _grouped(spec, kind, detail)
    if kind != "cpu":
        raise UsageError(f"target {spec!r} is not known; possible: {', '.join(EXAMPLES)}")
    architecture, system = _split(detail) if detail else (_host_architecture(), _host_system())
    architecture = _ALIASES.get(architecture, architecture)
    carried = _CARRIED.get(architecture, ())
    row = _ARCHITECTURES.get(carried[0] if carried else architecture)
    if row is None:
        known = ", ".join([*_ARCHITECTURES, *_CARRIED, *_ALIASES])
        raise UsageError(f"architecture {architecture!r} in target {spec!r} is not known: {known}")
    if row.triple == "wasm32":
        system = "freestanding"
    system = system or _host_system()
    ending, suffix = _SYSTEMS[system]
    return replace(
        row,
        spec=f"cpu:{architecture}-{system}",
        triple=f"{row.triple}-{ending}",
        suffix=suffix,
        carried=tuple(f"cpu:{level}-{system}" for level in carried),
    )


def others_of_kind(spec: str) -> str:
    """The targets beside this one that are for devices of its kind, as a sentence lists them."""
    *most, last = [other for other in _of_kind(spec.partition(":")[0]) if other != spec]
    return f"{', '.join(most)} or {last}" if most else last


def _of_kind(kind: str) -> list[str]:
    return [f"{kind}:{detail}" if detail else kind for detail in _GROUPED[kind]]


def _grouped(spec: str, kind: str, detail: str) -> Target:
    found = _GROUPED[kind].get(detail)
    if found is None:
        raise UsageError(f"target {spec!r} is not known; possible: {', '.join(_of_kind(kind))}")
    return found


def targets_of(target: Target) -> tuple[Target, ...]:
    """The targets that programs are compiled for: those that it carries, or itself."""
    return tuple(parse_target(spec) for spec in target.carried) or (target,)


def targets_with_products_of(operands: str) -> tuple[str, ...]:
    """Targets with a matrix unit for such floats, or with instructions for pairs of them."""
    rows = (row for kind in _GROUPED.values() for row in kind.values())
    grouped = tuple(row.spec for row in rows if row.unit and operands in row.unit.operands)
    paired = (f"cpu:{name}" for name, row in _ARCHITECTURES.items() if row.bf16_pairs)
    return (*grouped, *(paired if operands == "bf16" else ()))


def host_target() -> Target:
    """The CPU this process runs on."""
    return parse_target("cpu")


def is_of_host(target: Target) -> bool:
    """Whether its libraries are of this machine's kind; the CPU may still lack features."""
    return target.triple == host_target().triple


def _split(detail: str) -> tuple[str, str | None]:
    head, _, tail = detail.rpartition("-")
    return (head, tail) if head and tail in _SYSTEMS else (detail, None)


def _host_system() -> str:
    return _HOST_SYSTEMS.get(sys.platform, "linux")


def _host_architecture() -> str:
    machine = platform.machine().lower()
    plain, found = _ALIASES.get(machine, machine), cpu_features()
    if plain not in _ARCHITECTURES or found is None:
        return plain
    triple = _ARCHITECTURES[plain].triple
    levels = [(name, row) for name, row in _ARCHITECTURES.items() if row.triple == triple]
    return next((name for name, row in reversed(levels) if found.issuperset(row.features)), plain)
