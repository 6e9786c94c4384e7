"""C to libraries for every target, and failures that can be repeated."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sterna.base.errors import ToolchainError
from sterna.base.target import EXAMPLES, host_target, parse_target
from sterna.codegen.embed import manifest_source, pool_source
from sterna.codegen.toolchain import compile_library, find_compiler, toolchain_version
from sterna.runtime.library import manifest_bytes, read_header

# A fork, a frame above 4 KiB, a struct copy, a square root and division: what tempts compilers
# to call into a runtime that is not there.
KERNEL = """
struct Big { i32 values[3000]; };
struct Roots { const float *from; float *to; i64 count; };
static void roots(const void *args, i64 begin, i64 end, i32 tid) {
    const struct Roots *r = args;
    (void)tid;
    for (i64 i = begin; i < end; i++) r->to[i] = __builtin_sqrtf(r->from[i]) / 3.0f;
}
EXPORT i32 sterna_entry_roots(Pool *pool, void *const *buffers, void *arena, const i64 *dims);
EXPORT i32 sterna_entry_roots(Pool *pool, void *const *buffers, void *arena, const i64 *dims) {
    struct Big big, copy;
    memset(&big, (i32)dims[0], sizeof big);
    copy = big;
    struct Roots args = {buffers[0], buffers[1], dims[0]};
    parallel(pool, roots, &args, dims[0], 16);
    return arena ? copy.values[dims[0] % 3000] : other_unit((i32)dims[0]);
}
"""
OTHER = "i32 other_unit(i32 x);\n"
UNITS = [
    pool_source() + OTHER + manifest_source(b'{"it is": "??/ \\" \x01"}') + KERNEL,
    pool_source() + OTHER + "i32 other_unit(i32 x) { return x * STERNA_UNIT; }\n",
]
CPUS = tuple(spec for spec in EXAMPLES if parse_target(spec).triple)
MORE = (
    "cpu:x86-64-v2",
    "cpu:x86-64-v3-vnni",
    "cpu:x86-64-v4",
    "cpu:x86-64-v4-vnni",
    "cpu:x86-64-v4-bf16",
    "cpu:aarch64-dot-linux",
    "cpu:aarch64-i8mm-linux",
    "cpu:aarch64-windows",
    "cpu:aarch64-android",
    "cpu:x86-64-v3-android",
    "cpu:wasm32",
)


@pytest.mark.parametrize("spec", [*CPUS, *MORE])
def test_every_target_compiles_with_warnings_as_errors(spec: str, tmp_path: Path) -> None:
    target = parse_target(spec)
    library = tmp_path / f"x{target.suffix}"
    assert compile_library(UNITS, target, library) == library
    assert read_header(library).machine in ("x86-64", "aarch64", "wasm32")
    assert manifest_bytes(library) == b'{"it is": "??/ \\" \x01"}'
    assert [p.name for p in tmp_path.iterdir()] == [library.name]


def roots_of(library: Path, count: int) -> list[float]:
    handle = ctypes.CDLL(str(library))
    numbers, results = (ctypes.c_float * count)(*range(count)), (ctypes.c_float * count)()
    memory = (ctypes.c_char * 8192)()
    pool = ctypes.addressof(memory) // 64 * 64 + 64
    ctypes.c_int32.from_address(pool).value = 1
    buffers = (ctypes.c_void_p * 2)(ctypes.addressof(numbers), ctypes.addressof(results))
    dims = (ctypes.c_int64 * 1)(count)
    assert handle.sterna_entry_roots(ctypes.c_void_p(pool), buffers, None, dims) == count
    return list(results)


@pytest.mark.parametrize("cc", [None, "gcc", "clang"])
def test_the_library_runs(cc: str | None, tmp_path: Path) -> None:
    if cc and shutil.which(cc) is None:
        pytest.skip(f"needs {cc}")
    found = roots_of(_built(tmp_path, cc=cc), 100)
    assert found[49] == ctypes.c_float(7 / 3).value
    assert found[0] == 0


def test_undefined_behaviour_traps_when_asked(tmp_path: Path) -> None:
    library = tmp_path / f"x{host_target().suffix}"
    compile_library(UNITS, host_target(), library, sanitize=["undefined"])
    assert roots_of(library, 50)[36] == 2.0
    plain = compile_library(UNITS, host_target())
    assert isinstance(plain, bytes)
    assert plain != library.read_bytes()


def test_the_host_library_needs_nothing(tmp_path: Path) -> None:
    if host_target().suffix != ".so":
        pytest.skip("looks at an ELF library, and this machine's are of another format")
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (package binutils)")
    library = _built(tmp_path)
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
    symbols = subprocess.run(["readelf", "--dyn-syms", library], capture_output=True, text=True)
    assert "NEEDED" not in dynamic
    assert " UND sterna" not in symbols.stdout
    assert "memcpy" not in symbols.stdout


# A library that is its own program: no libc to link, none to find at run time.
START = """
static i64 call_system(i64 number, i64 a, const void *b, i64 c) {
    register i64 x8 __asm__("x8") = number, x0 __asm__("x0") = a, x2 __asm__("x2") = c;
    register const void *x1 __asm__("x1") = b;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
EXPORT void start(void);
EXPORT void start(void) {
    static _Alignas(64) u8 memory[4096];
    static float from[100], to[100];
    Pool *pool = (Pool *)memory;
    pool->threads = 3; // none comes: the caller does it all
    for (i32 i = 0; i < 100; i++) from[i] = (float)i;
    void *buffers[2] = {from, to};
    __asm__("" : "+r"(buffers[0]), "+r"(buffers[1])); // computed, for no one relocates a table
    i64 dims[1] = {100};
    i32 count = sterna_entry_roots(pool, buffers, (void *)0, dims);
    call_system(64, 1, to, 400);
    call_system(93, count == 100 ? 0 : 1, (void *)0, 0);
}
"""


def qemu() -> str:
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        pytest.skip("needs qemu-aarch64 (package qemu-user)")
    return found


def test_a_library_for_aarch64_runs_under_qemu(tmp_path: Path) -> None:
    emulator = qemu()
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (package binutils)")
    library = tmp_path / "x.so"
    compile_library([UNITS[0] + START, UNITS[1]], parse_target("cpu:aarch64-linux"), library)
    symbols = subprocess.run(["readelf", "--dyn-syms", "-W", library], capture_output=True)
    lines = (line.split() for line in symbols.stdout.decode().splitlines())
    address = next(int(words[1], 16) for words in lines if words[-1:] == ["start"])
    data = bytearray(library.read_bytes())
    struct.pack_into("<Q", data, 24, address)  # e_entry
    program = tmp_path / "program"
    program.write_bytes(data)
    program.chmod(0o755)
    done = subprocess.run([emulator, program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    here = roots_of(_built(tmp_path), 100)
    assert struct.unpack("<100f", done.stdout) == tuple(here)  # bit for bit on both machines


@pytest.mark.slow  # zig builds a libc for aarch64 first
def test_the_pool_runs_on_aarch64_threads(tmp_path: Path) -> None:
    emulator, compiler = qemu(), find_compiler()
    if compiler.family != "zig":
        pytest.skip("STERNA_CC names another compiler; zig carries a libc for aarch64")
    here = Path(__file__).parent
    source, include = here / "pool_harness.c", here.parents[1] / "src" / "sterna" / "codegen"
    flags = ["-target", "aarch64-linux-musl", "-static", "-O2", "-std=gnu11", f"-I{include}"]
    program = tmp_path / "pool"
    subprocess.run([*compiler.command, *flags, source, "-o", program], check=True)
    for mode in ("plain", "late"):
        line = [emulator, program, "3", "300", mode]
        assert subprocess.run(line, capture_output=True, text=True).stdout == "ok\n"


def test_a_failure_tells_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "x.so"
    with pytest.raises(ToolchainError, match="repro: cd ") as caught:
        compile_library(["int fine;\n", "int broken = ;\n"], host_target(), output)
    error = caught.value
    assert not output.exists()
    assert error.source is not None
    assert error.source.read_text() == "int broken = ;\n"
    assert "expected expression" in error.log
    repeated = subprocess.run(error.command, cwd=error.source.parent, capture_output=True)
    assert repeated.returncode != 0


def test_a_missing_function_fails_at_compile_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    missing = "float expf(float x);\nEXPORT float f(float x);\nEXPORT float f(float x) "
    with pytest.raises(ToolchainError, match="expf"):
        compile_library(pool_source() + missing + "{ return expf(x); }\n", host_target())


@pytest.mark.parametrize("cc", ["no-such-compiler-here", "false"])
def test_a_compiler_that_is_none(cc: str) -> None:
    with pytest.raises(ToolchainError):
        find_compiler(cc)


def test_the_environment_picks_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    monkeypatch.setenv("STERNA_CC", "gcc")
    assert find_compiler().family == "gcc"
    assert find_compiler("gcc -m64").command == ("gcc", "-m64")


def test_the_version_tells_targets_and_compilers_apart() -> None:
    texts = {toolchain_version(parse_target(spec)) for spec in (*CPUS[1:], "opencl", *MORE)}
    assert len(texts) == len(CPUS) + len(MORE)
    assert toolchain_version(host_target()) == toolchain_version(host_target())


def _built(folder: Path, cc: str | None = None) -> Path:
    library = folder / f"x{host_target().suffix}"
    compile_library(UNITS, host_target(), library, cc=cc)
    return library
