"""The renderer of WebGPU: kernels in WGSL, one module for each launch.

WGSL has neither pointers nor numbers of 8 and 16 bits in memory: such buffers are arrays of words,
whose elements are cut out where they are read and cannot be stored; f16 can be where the target
has the extension. A buffer that is read by fours alone is an array of vectors. Loops that are to be
written out are, as no word says it. Math is the language's own but for sine and cosine, so results
are close to other targets' and not the same bits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, TypeGuard

from sterna.base.dtype import BF16, BOOL, F16, F32, I8, I32, U8, U16, U32, DType
from sterna.base.errors import CodegenError
from sterna.base.target import Target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.cstyle import CStyle, GroupSource, Signature, render_groups
from sterna.codegen.fours import FOUR, FoursStyle
from sterna.codegen.quads import QUAD, read_alike
from sterna.codegen.renderer import LibraryParts
from sterna.codegen.vectors import Kinds
from sterna.codegen.write_out import unrolled, write_out
from sterna.ir.expr import Buffer, Const, Expr, Load, const_value
from sterna.ir.linear import Sum
from sterna.ir.loop import ForKind, PrimFunc, Stmt, Store
from sterna.ir.rewrite import visit

# Lines of their own: native WebGPU has subgroups without being told, and no such rule.
SUBGROUPS = "enable subgroups;"
ANYWHERE = "diagnostic(off, subgroup_uniformity);"
SWAPS = "subgroupShuffleXor"
HANDS_ON = "quadBroadcast"
MODULE = "//// module "  # begins the line before each launch's module, with its symbol

_PRELUDE = """\
fn bits_f32(x: u32) -> f32 { return bitcast<f32>(x); }
fn fma_f32(a: f32, b: f32, c: f32) -> f32 { return fma(a, b, c); }
fn added_f32(c: f32, a: f32, b: f32) -> f32 { return fma(a, b, c); }
fn sqrt_f32(x: f32) -> f32 { return sqrt(x); }
fn exp_f32(x: f32) -> f32 { return select(exp(x), 0.0, x < -87.33654); }
fn log_f32(x: f32) -> f32 { return log(x); }
fn tanh_f32(x: f32) -> f32 { return tanh(clamp(x, -20.0, 20.0)); }
fn floor_f32(x: f32) -> f32 { return floor(x); }
fn abs_f32(x: f32) -> f32 { return abs(x); }
fn min_f32(a: f32, b: f32) -> f32 { return min(a, b); }
fn max_f32(a: f32, b: f32) -> f32 { return max(a, b); }
fn f32_from_f16(x: u32) -> f32 { return unpack2x16float(x).x; }
fn f32_from_bf16(x: u32) -> f32 { return bitcast<f32>(x << 16u); }
fn floor_div(a: i32, b: i32) -> i32 {
    return a / b - select(0, 1, a % b != 0 && (a % b < 0) != (b < 0));
}
fn floor_mod(a: i32, b: i32) -> i32 {
    let r = a % b;
    return select(r, r + b, r != 0 && (r < 0) != (b < 0));
}
fn sine_quarter(x: f32, quarter: u32) -> f32 {
    let n = round(x * 0.63661975);
    var r = x - n * 1.5625 - n * 0.008178711 - n * 0.00011730194;
    r = r - n * 3.1292439e-7 - n * 9.895302e-10 - n * 2.2737368e-12 - n * 2.8776979e-13;
    let q = bitcast<u32>(i32(n)) + quarter;
    let s = r * r;
    var sine = fma(-1.9515296e-4, s, 8.332161e-3);
    sine = fma(fma(sine, s, -1.6666655e-1) * s, r, r);
    var cosine = fma(2.4433157e-5, s, -1.3887316e-3);
    cosine = fma(fma(cosine, s, 4.1666646e-2), s * s, fma(s, -0.5, 1.0));
    let value = select(cosine, sine, (q & 1u) == 0u);
    return select(value, -value, (q & 2u) != 0u);
}
fn sin_f32(x: f32) -> f32 { return sine_quarter(x, 0u); }
fn cos_f32(x: f32) -> f32 { return sine_quarter(x, 1u); }
"""
_PACKED = {F16: 16, BF16: 16, U16: 16, U8: 8, I8: 8, BOOL: 8}
_USES_HALF = re.compile(r"\bf16\b")


@dataclass(slots=True)
class Wgsl(FoursStyle):
    """WGSL."""

    TYPES: ClassVar[dict[DType, str]] = {
        F32: "f32", I32: "i32", U32: "u32", BOOL: "bool",
        F16: "u32", BF16: "u32", U16: "u32", U8: "u32", I8: "i32",
    }  # fmt: skip
    VECTORS: ClassVar[Kinds] = frozenset((d, FOUR) for d in (U32, I32, F32))
    WIDE: ClassVar[str] = ""
    PACKED: ClassVar[dict[DType, int]] = _PACKED  # buffers that are arrays of words

    @classmethod
    def prepared(cls, stmt: Stmt) -> Stmt:
        return unrolled(stmt)

    def function(self, s: Signature) -> str:
        return f"{MODULE}{s.symbol}\n{CStyle.function(self, s)}"

    def head(self, s: Signature) -> str:
        lines = []
        times = Counter(buffer for buffer, _, _ in s.buffers)
        for i, (buffer, title, writes) in enumerate(s.buffers):
            if writes and buffer.dtype in self.PACKED:
                raise CodegenError(
                    f"kernel {s.symbol} stores {buffer.dtype}, and memory has no such numbers "
                    "there; choose a scheme that computes in f32, such as q4f32_1"
                )
            kind = self.stored(buffer) + (self.extent(buffer) if times[buffer] == 1 else "")
            binding = f"@group(0) @binding({i}) var<storage, {self.access(buffer, writes)}>"
            lines.append(f"{binding} {title}: array<{kind}>;")
        fields = ", ".join(f"{d}: i32" for d in s.dims)
        if s.dims:
            lines.append(f"struct Dims {{ {fields} }};")
            lines.append(f"@group(0) @binding({len(s.buffers)}) var<uniform> dims: Dims;")
        builtins = (
            "@builtin(workgroup_id) group_number: vec3<u32>, "
            "@builtin(num_workgroups) group_count: vec3<u32>, "
            "@builtin(local_invocation_index) thread_number: u32"
        )
        self.arrays += [f"let {d} = dims.{d};" for d in s.dims]
        size = f"@compute @workgroup_size({s.threads})"
        return "\n".join([*lines, f"{size} fn {s.symbol}({builtins}) {{"])

    def access(self, buffer: Buffer, writes: bool) -> str:
        """Read-only for whole numbers that say which way a group goes, as barriers demand.

        Not for others: a buffer may not be both in one launch, and the arena is one buffer.
        """
        steers = buffer in self.kernel.steering and buffer.dtype == I32 and not writes
        return "read" if steers else "read_write"

    def outside(self, declaration: str) -> list[str]:
        self.before.append(declaration)
        return []

    def shared(self, dtype: DType, title: str, size: int) -> str:
        return f"var<workgroup> {title}: array<{self.TYPES[dtype]}, {size}>;"

    def shared_bytes(self, buffer: Buffer) -> int:
        return 4  # smaller numbers are words there

    def group_index(self) -> str:
        return "i32(group_number.x + group_number.y * group_count.x)"

    def beyond(self, groups: Expr) -> None:
        """A grid has some groups too many."""
        self.line(f"if ({self.group_index()} >= {self.text(groups)}) {{ return; }}")

    def stored(self, buffer: Buffer) -> str:
        """The type of what a buffer is an array of."""
        kind = "u32" if buffer.dtype in self.PACKED else self.TYPES[buffer.dtype]
        return f"vec{FOUR}<{kind}>" if buffer in self.fours else kind

    def extent(self, buffer: Buffer) -> str:
        """How many of these an array has, where that is said; of one bound in parts it is not."""
        return ""

    def joined(self, buffer: Buffer, title: str, parts: Sequence[str], size: int) -> None:
        apart = 4 if buffer.dtype in self.PACKED else buffer.dtype.bytes
        each = self.part_vectors(buffer, size) if buffer in self.fours else size // apart
        lines = [f"fn {title}(i: i32) -> {self.stored(buffer)} {{"]
        for i, part in enumerate(parts[:-1]):
            lines.append(f"    if (i < {(i + 1) * each}) {{ return {part}[i - {i * each}]; }}")
        lines.append(f"    return {parts[-1]}[i - {(len(parts) - 1) * each}];\n}}")
        self.before.append("\n".join(lines))

    def thread_index(self) -> str:
        return "i32(thread_number)"

    def barrier(self) -> str:
        return "storageBarrier(); workgroupBarrier();"

    def swapped(self, value: str, distance: int) -> str:
        return f"{SWAPS}({value}, {distance}u)"

    def constant(self, dtype: DType, title: str, value: str) -> None:
        self.line(f"let {title}: {self.TYPES[dtype]} = {value};")

    def array(self, dtype: DType, title: str, size: int) -> str:
        return f"var {title}: array<{self.TYPES[dtype]}, {size}>;"

    def counting(self, var: str, end: str) -> str:
        return f"for (var {var}: i32 = 0; {var} < {end}; {var}++) {{"

    def place(self, buffer: Buffer, index: tuple[Expr, ...]) -> str:
        bits = self.PACKED.get(buffer.dtype)
        if bits is None or buffer.scope != "global":
            return CStyle.place(self, buffer, index)
        at, many = self.offset(buffer, index), 32 // bits
        shift = many.bit_length() - 1
        word = self.element(buffer, f"{at} >> {shift}u")
        cut = f"(({word} >> (u32({at} & {many - 1}) * {bits}u)) & {(1 << bits) - 1}u)"
        if buffer.dtype == I8:
            return f"extractBits(bitcast<i32>({word}), u32({at} & 3) * 8u, 8u)"
        return f"({cut} != 0u)" if buffer.dtype == BOOL else cut

    def four(self, buffer: Buffer, at: str) -> tuple[str, ...]:
        title = self.identifier(f"{self.buffers[buffer]}_four")
        self.line(f"let {title} = {self.element(buffer, at)};")
        return tuple(f"{title}[{i}]" for i in range(FOUR))

    def keep(self, own: Buffer, index: tuple[Expr, ...], text: str) -> None:
        self.line(f"{self.place(own, index)} = {text};")

    def literal(self, c: Const) -> str:
        if c.dtype == BOOL:
            return "true" if c.value else "false"
        return CStyle.literal(self, c)

    def choice(self, dtype: DType, cond: str, a: str, b: str) -> str:
        return f"select({b}, {a}, {cond})"

    def cast(self, dtype: DType, text: str) -> str:
        return f"{self.TYPES[dtype]}({text})"

    def shift(self, op: str, x: str, y: str, dtype: DType) -> str:
        return f"({x} {op} {y})" if dtype.kind == "uint" else f"({x} {op} u32({y}))"

    def power_division(self, op: str, x: str, shift: int, mask: int, dtype: DType) -> str:
        if dtype.kind == "uint":
            return f"({x} >> {shift}u)" if op == "//" else f"({x} & {mask}u)"
        return f"({x} >> {shift}u)" if op == "//" else f"({x} & {mask})"


@dataclass(slots=True)
class HalfWgsl(Wgsl):
    """WGSL with the extension that has f16 in memory."""

    TYPES: ClassVar[dict[DType, str]] = {**Wgsl.TYPES, F16: "f16"}
    VECTORS: ClassVar[Kinds] = Wgsl.VECTORS | {(F16, FOUR)}
    PACKED: ClassVar[dict[DType, int]] = {d: n for d, n in _PACKED.items() if d != F16}

    def shared_bytes(self, buffer: Buffer) -> int:
        return 2 if buffer.dtype == F16 else 4

    def converted(self, text: str, source: DType, to: DType) -> str:
        halves = {F16, F32}
        if source != to and {source, to} == halves:
            return self.cast(to, text)
        return Wgsl.converted(self, text, source, to)


@dataclass(slots=True)
class AloneWgsl(Wgsl):
    """WGSL for devices imitated by a processor, whose compilers take a kernel as it is told.

    Each access is checked, and looked up by each lane: elements read by fours are one access, and
    an array of known length needs no look for its length, nor often a check. Loops over elements
    are written out, so that loads show what is read by fours.
    """

    loaded: dict[tuple[Buffer, str], tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    turns: dict[int, str] = field(default_factory=dict)  # how open loops go on, by their depth
    alike: frozenset[Buffer] = frozenset()  # arrays of numbers that are read by fours as well

    @classmethod
    def prepared(cls, stmt: Stmt) -> Stmt:
        return write_out(stmt)

    def __post_init__(self) -> None:
        nodes = list(visit(self.kernel.body))
        stored = {n.buffer for n in nodes if isinstance(n, Store)}
        read = {n.buffer for n in nodes if isinstance(n, Load)} - stored
        self.fours = frozenset(filter(self.by_fours, read))

    def by_fours(self, buffer: Buffer) -> bool:
        """Whether all four of neighbours are read, at offsets that are known, and are all there."""
        size = prod(int(const_value(d) or 1) for d in buffer.shape)
        if size % FOUR or buffer.dtype in self.PACKED:
            return False
        found = [self.sum(n) for n in visit(self.kernel.body) if _reads(n, buffer)]
        apart = any(step % FOUR for sum_ in found for step in sum_.terms.values())
        return not apart and {sum_.constant % FOUR for sum_ in found} == {0, 1, 2, 3}

    def extent(self, buffer: Buffer) -> str:
        sizes = [const_value(d) for d in buffer.shape]
        size = prod(int(n) for n in sizes if n is not None)
        apart = FOUR if buffer in self.fours else 32 // self.PACKED.get(buffer.dtype, 32)
        return "" if None in sizes or size == 0 else f", {-(-size // apart)}"

    def sum(self, e: Load) -> Sum:
        return self.simplifier.sum(self.flat(e.buffer, e.index))

    def fma(self, a: str, b: str, c: str) -> str:
        """The sum so far is told first, and so made first: what is told before it waits for it."""
        return f"added_f32({c}, {a}, {b})"

    def load(self, e: Load) -> str:
        if e.buffer not in self.fours | self.alike:
            return Wgsl.load(self, e)
        element = self.sum(e)
        at, (_, part) = self.vector(element), element.split(FOUR)
        if (e.buffer, at) not in self.loaded:
            self.loaded[e.buffer, at] = (self.depth, self.four(e.buffer, at))
        return self.loaded[e.buffer, at][1][int(part.constant)]

    def close(self, text: str = "}") -> None:
        Wgsl.close(self, text)
        self.loaded = {k: found for k, found in self.loaded.items() if found[0] <= self.depth}

    def count(self, var: str, end: str, kind: ForKind) -> None:
        """Whether there is a next turn is asked behind a turn, not before it.

        Such a compiler jumps at the end of a loop alone: what leaves before is masked, and all of
        the body runs once more for nobody.
        """
        self.turns[self.depth] = f"continuing {{ {var}++; break if !({var} < {end}); }}"
        some = "" if end.isdigit() and int(end) else f"if (0 < {end}) "
        self.open(f"{some}{{ var {var}: i32 = 0; loop {{")

    def end(self) -> None:
        again = self.turns.pop(self.depth - 1, None)
        if again is not None:
            self.line(again)
        self.close("}" if again is None else "} }")


@dataclass(slots=True)
class QuadWgsl(AloneWgsl):
    """Where a quad reads four neighbours alike, each thread looks up one for all.

    In the branches where that is, whole quads are, which a browser's compiler cannot see.
    """

    def __post_init__(self) -> None:
        AloneWgsl.__post_init__(self)
        self.alike = read_alike(self.kernel, self.fours, self.simplifier)
        self.fours -= self.alike
        self.lanes = QUAD if self.alike else 0
        self.unique.taken |= {"lane", "corner"}

    def head(self, s: Signature) -> str:
        head = AloneWgsl.head(self, s)
        if not self.alike:
            return head
        self.arrays.append("let corner = i32(lane & 3u);")
        return head.replace(") {", ", @builtin(subgroup_invocation_id) lane: u32) {")

    def four(self, buffer: Buffer, at: str) -> tuple[str, ...]:
        if buffer not in self.alike:
            return AloneWgsl.four(self, buffer, at)
        title = self.identifier(f"{self.buffers[buffer]}_one")
        self.line(f"let {title} = {self.element(buffer, f'{at} * {FOUR} + corner')};")
        found = []
        for i in range(FOUR):
            found.append(self.identifier(self.buffers[buffer]))
            self.line(f"let {found[-1]} = {HANDS_ON}({title}, {i}u);")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class WgslRenderer(SourceRenderer):
    """Kernels in the words of the target's extensions."""

    def render_kernel(self, func: PrimFunc, target: Target) -> GroupSource:
        style = HalfWgsl if F16.name in target.small_numbers else Wgsl
        if not target.barriers:
            style = QuadWgsl if target.subgroup else AloneWgsl
        return render_groups(func, style, target)

    def library_source(self, parts: LibraryParts) -> str:
        whole = SourceRenderer.library_source(self, parts)
        asked = ["enable f16;"] if _USES_HALF.search(whole) else []
        asked += [SUBGROUPS] if SWAPS in whole or HANDS_ON in whole else []
        asked += [ANYWHERE] if HANDS_ON in whole else []
        return "\n".join([*asked, whole])


def _reads(node: Expr | Stmt, buffer: Buffer) -> TypeGuard[Load]:
    return isinstance(node, Load) and node.buffer is buffer


RENDERER = WgslRenderer(".wgsl", Wgsl, _PRELUDE)
