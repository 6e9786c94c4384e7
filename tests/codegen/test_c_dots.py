"""Dot products of packed numbers: every instruction set gives the exact sums, where it can run.

Natively what this CPU has, NEON under qemu, wasm in node; what remains is compiled, and looked at.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sterna.base.cpu_features import cpu_features
from sterna.base.target import is_of_host, parse_target
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.expr import INTRINSICS

COUNT, WIDTHS = 1024, (1, 2, 4, 8, 16, 32)
NAMES = ("dot2", "dot4", "dot2_add", "dot4_add", "pair4", "pair4_add")
FLOATS = 4  # results of bf16
WAYS = (len(NAMES) + FLOATS) * len(WIDTHS) + 1  # tiles lie between the integers and the floats
ARM = ("aarch64", "aarch64-dot", "aarch64-i8mm")
X86 = tuple(f"cpu:x86-64-{level}" for level in ("v2", "v3", "v3-vnni", "v4", "v4-vnni", "v4-bf16"))
FILL = """
static i32 x[COUNT], y[COUNT], z[COUNT], out[WAYS * COUNT];
EXPORT i32 *sums_of_noise(void);
EXPORT i32 *sums_of_noise(void) {
    u32 state = 1;
    for (i32 i = 0; i < COUNT; i++) {
        x[i] = (i32)(state = state * 1664525u + 1013904223u);
        y[i] = (i32)((state = state * 1664525u + 1013904223u) & 0x7f7f7f7fu);
        z[i] = (i32)((state = state * 1664525u + 1013904223u) & 0x0fff0fffu);
    }
    i32 *to = out;
"""
TILES = """
    for (i32 i = 0; i < COUNT; i += 8, to += 8) {
        i32x4 top = *(i32x4u *)(z + i), bottom = *(i32x4u *)(z + i + 4);
        tile_i32x4(&top, &bottom, x + i + 1, x + i + 5, *(i32x4u *)(y + i), *(i32x4u *)(y + i + 4));
        *(i32x4u *)to = top;
        *(i32x4u *)(to + 4) = bottom;
    }
"""
# Numbers without infinities, many of them subnormal.
BF16 = """
    for (i32 i = 0; i < COUNT; i += LANES, to += LANES) {
        i32@ a = *(i32@u *)(x + i) & (i32)0xbf81bf81, b = *(i32@u *)(y + i) & (i32)0x80ffbf80;
        f32@ sum = bits_f32@((u32@)*(i32@u *)(z + i) & 0x80ffffffu);
        *(i32@u *)to = (i32@)bits_u32@(dot2_bf16_add_f32@(a, b, sum));
    }
    for (i32 i = 0; i < COUNT; i += LANES, to += LANES) {
        u32@ a = (u32@)*(i32@u *)(x + i) & 0xbfffffffu, b = (u32@)*(i32@u *)(y + i) & 0xbfffffffu;
        *(i32@u *)to = pair_bf16_i32@(bits_f32@(a), bits_f32@(b));
    }
    for (i32 i = 0; i < COUNT; i += LANES, to += LANES) {
        i32@ a = *(i32@u *)(x + i) & 0x00ff00ff, b = *(i32@u *)(y + i) & 0xff;
        *(i32@u *)to = codes_bf16_i32@(a, b);
    }
    for (i32 i = 0; i < COUNT; i += LANES, to += LANES) {
        i32@ a = *(i32@u *)(x + i) & 0x000f000f, b = *(i32@u *)(y + i) & 0xf;
        *(i32@u *)to = nibbles_bf16_i32@(a, b);
    }
"""
# An ELF library that is its own program; see test_toolchain.
START = """
static i64 call_system(i64 number, i64 a, const void *b, i64 c) {
    register i64 x8 __asm__("x8") = number, x0 __asm__("x0") = a, x2 __asm__("x2") = c;
    register const void *x1 __asm__("x1") = b;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
EXPORT void start(void);
EXPORT void start(void) {
    call_system(64, 1, sums_of_noise(), sizeof out);
    call_system(93, 0, (void *)0, 0);
}
"""
NODE = """
const bytes = require("fs").readFileSync(process.argv[1]);
WebAssembly.instantiate(bytes, {}).then(({ instance: { exports: e } }) => {
    const at = e.sums_of_noise();
    console.log(JSON.stringify(Array.from(new Int32Array(e.memory.buffer, at, COUNT))));
});
"""


def source() -> str:
    """One exported function: all forms and widths over the same noise, one after another."""
    lines = [pool_source(), prelude(WIDTHS)]
    lines.append(FILL.replace("WAYS", str(WAYS)).replace("COUNT", str(COUNT)))
    for name in NAMES:
        for lanes in WIDTHS:
            kind = "i32" if lanes == 1 else f"i32x{lanes}u"
            operands = "xyz" if "_" in name else "xy"
            value = ", ".join(f"*({kind} *)({operand} + i)" for operand in operands)
            suffix = "" if lanes == 1 else f"x{lanes}"
            lines.append(
                f"    for (i32 i = 0; i < {COUNT}; i += {lanes}, to += {lanes}) "
                f"*({kind} *)to = {name}_i32{suffix}({value});"
            )
    lines.append(TILES.replace("COUNT", str(COUNT)))
    for lanes in WIDTHS:
        suffix, unaligned = ("", "") if lanes == 1 else (f"x{lanes}", "u")
        floats = BF16.replace("COUNT", str(COUNT)).replace("LANES", str(lanes))
        lines.append(floats.replace("@u", suffix + unaligned).replace("@", suffix))
    return "\n".join([*lines, "    return out;", "}"])


def exact(fused: bool) -> NDArray[Any]:
    """`fused`: whether a target has fma, which tiny products of bf16 tell."""
    state, noise = 1, []
    for _ in range(3 * COUNT):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        noise.append(state)
    x, y, z = (np.array(noise[i::3], np.int64) for i in range(3))
    x, y, z = (a.astype(np.uint32).view(np.int32) for a in (x, y & 0x7F7F7F7F, z & 0x0FFF0FFF))
    plain = [INTRINSICS[name].numpy(x, y) for name in ("dot2", "dot4")]
    pairs = [INTRINSICS["pair4"].numpy(x, y), INTRINSICS["pair4_add"].numpy(x, y, z)]
    forms = [*plain, *(sums + z for sums in plain), *pairs]
    parts = [*(np.tile(form, len(WIDTHS)) for form in forms), tiles(x, y, z)]
    finite = ((v & np.int32(0xBFFFFFFF - (1 << 32))).view(np.float32) for v in (x, y))
    floats = [
        bf16(x, y, z, fused),
        INTRINSICS["pair_bf16"].numpy(*finite),
        INTRINSICS["codes_bf16"].numpy(x & 0x00FF00FF, y & 0xFF),
        INTRINSICS["nibbles_bf16"].numpy(x & 0x000F000F, y & 0xF),
    ]
    return np.concatenate([*parts, np.tile(np.concatenate(floats), len(WIDTHS))])


def bf16(x: NDArray[Any], y: NDArray[Any], z: NDArray[Any], fused: bool) -> NDArray[Any]:
    """What VDPBF16PS makes: the upper products first, subnormal numbers as zeros."""

    def number(bits: NDArray[Any]) -> NDArray[Any]:
        kept = np.where(bits & 0x7F800000, bits, bits & 0x80000000)
        return kept.astype(np.uint32).view(np.float32).astype(np.float64 if fused else np.float32)

    a, b = x.view(np.uint32) & 0xBF81BF81, y.view(np.uint32) & 0x80FFBF80
    total = number(z.view(np.uint32) & 0x80FFFFFF)
    for high in (True, False):
        left, right = ((v & 0xFFFF0000 if high else v << 16) for v in (a, b))
        added = total + number(left) * number(right)
        total = number(added.astype(np.float32).view(np.uint32))
    return total.astype(np.float32).view(np.int32)


def tiles(x: NDArray[Any], y: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """Of each 8: z [2 rows, 4 columns] plus x [2 rows, 2 words] times y [2 words, 4 columns]."""
    dot4 = INTRINSICS["dot4"].numpy
    rows, columns, sums = x.reshape(-1, 8), y.reshape(-1, 2, 4), z.reshape(-1, 2, 4)
    found = [
        sum(dot4(rows[:, at + word, None], columns[:, word]) for word in range(2)) for at in (1, 5)
    ]
    return (sums + np.stack(found, axis=1)).ravel()


def native(spec: str, folder: Path, cc: str | None = None) -> NDArray[Any]:
    """What the code does here; it compiles, and then the test is skipped, where it cannot run."""
    target = parse_target(spec)
    if cc is not None and not is_of_host(target):
        pytest.skip(f"{cc} makes code for this machine's kind alone, which {spec} is not of")
    library = folder / f"dots{target.suffix}"
    compile_library(source(), target, library, cc=cc)
    lacks = set(target.features) - (cpu_features() or frozenset())
    if not is_of_host(target) or lacks:
        pytest.skip(f"this machine cannot run {spec}: lacks {', '.join(sorted(lacks)) or 'all'}")
    function = ctypes.CDLL(str(library)).sums_of_noise
    function.restype = ctypes.POINTER(ctypes.c_int32)
    return np.ctypeslib.as_array(function(), (WAYS * COUNT,)).copy()


@pytest.mark.parametrize("spec", X86)
def test_levels_that_this_machine_has(spec: str, tmp_path: Path) -> None:
    fused = parse_target(spec).fma
    assert np.array_equal(native(spec, tmp_path), exact(fused))


@pytest.mark.parametrize("spec", X86)
def test_levels_that_gcc_compiles(spec: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    fused = parse_target(spec).fma
    assert np.array_equal(native(spec, tmp_path, "gcc"), exact(fused))


@pytest.mark.parametrize("spec", [f"cpu:{level}-linux" for level in ARM])
def test_neon_under_qemu(spec: str, tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("readelf") is None:
        pytest.skip("needs qemu-aarch64 (package qemu-user) and readelf (binutils)")
    library = tmp_path / "dots.so"
    compile_library(source() + START, parse_target(spec), library)
    symbols = subprocess.run(["readelf", "--dyn-syms", "-W", library], capture_output=True)
    lines = (line.split() for line in symbols.stdout.decode().splitlines())
    address = next(int(words[1], 16) for words in lines if words[-1:] == ["start"])
    program = bytearray(library.read_bytes())
    struct.pack_into("<Q", program, 24, address)  # e_entry
    library.write_bytes(program)
    library.chmod(0o755)
    done = subprocess.run([emulator, library], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.frombuffer(done.stdout, np.int32), exact(fused=True))


def test_wasm_in_node(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node")
    library = tmp_path / "dots.wasm"
    compile_library(source(), parse_target("cpu:wasm32"), library)
    script = NODE.replace("COUNT", str(WAYS * COUNT))
    done = subprocess.run(["node", "-e", script, library], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == exact(fused=False).tolist()


@pytest.mark.parametrize(
    ("spec", "instructions"),
    [
        ("cpu:x86-64-v3-vnni-linux", ("vpdpwssd", "vpdpbusd")),
        ("cpu:x86-64-v4-vnni-linux", ("vpdpwssd", "vpdpbusd")),
        ("cpu:x86-64-v4-bf16-linux", ("vpdpwssd", "vdpbf16ps", "vpermw")),
        ("cpu:aarch64-dot-linux", ("sdot", "smull")),
        ("cpu:aarch64-i8mm-linux", ("sdot", "smmla")),
    ],
)
def test_the_instructions_are_there(
    spec: str, instructions: tuple[str, ...], tmp_path: Path
) -> None:
    disassembler = shutil.which("llvm-objdump")
    if disassembler is None:
        pytest.skip("needs llvm-objdump")
    library = tmp_path / "dots.so"
    compile_library(source(), parse_target(spec), library)
    features = ["--mattr=+dotprod,+i8mm"] if "sdot" in instructions else []
    command = [disassembler, "-d", *features, str(library)]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    for instruction in instructions:
        assert instruction in text, instruction
