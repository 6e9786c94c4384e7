"""C text to a shared library, through an outside compiler.

In: the translation units of one library and a target. Out: the library, or ToolchainError with
all that is needed to repeat the failure. The C is freestanding (no header, no libc), so any
triple compiles with no sysroot. Knows nothing of what the code computes, and does no caching
beyond saying, with `toolchain_version`, what a cache key must hold.

The compiler is the clang inside the `ziglang` wheel; `cc` or STERNA_CC picks another.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from sterna.base.cache import cache_dir, key, write_atomic
from sterna.base.errors import ToolchainError
from sterna.base.target import Target, targets_of

# Results must be those of IEEE arithmetic in the written order, on every machine: nothing that
# reorders or contracts. The two -fno- flags about errno and traps change no value.
_MEANING = (
    "-std=c11", "-ffreestanding", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fno-strict-aliasing",
)  # fmt: skip
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
_OUTPUT = (
    "-O3", "-fPIC", "-fvisibility=hidden", "-fomit-frame-pointer", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-g0",
)  # fmt: skip
_KEPT = ("unit*.c", "unit*.o", "kernels*")  # of a failure
_TIMEOUT_SECONDS = 900
# Features that choose among instructions, by zig's names, and the flags of gcc and clang for them.
_TUNING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"fast_dpwssd": (), "prefer_256_bit": ("-mprefer-vector-width=512",)}
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler. `family` is "zig", "clang" or "gcc"; `command` begins each call."""

    family: str
    command: tuple[str, ...]
    version: str


def compile_library(
    sources: str | Sequence[str],
    target: Target,
    output: Path | None = None,
    *,
    cc: str | None = None,
    sanitize: Sequence[str] = (),
) -> Path | bytes:
    """Compile and link the C translation units of one library.

    Unit i is compiled with -DSTERNA_UNIT=i, for the target's i-th carried target where it has any,
    as many at a time as there are processors. Returns
    `output`, written atomically, or the library's bytes when `output` is None. `sanitize` names
    sanitizers for tests; a library built so wants the compiler's runtime, save "undefined",
    which then traps.
    """
    units = [sources] if isinstance(sources, str) else list(sources)
    compiler = find_compiler(cc)
    with tempfile.TemporaryDirectory(prefix="sterna-cc-") as name:
        built = _build(units, target, compiler, tuple(sanitize), Path(name))
    if output is None:
        return built
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, built)
    return output


def toolchain_version(target: Target, cc: str | None = None) -> str:
    """All of the toolchain that shapes a library's bytes, as text: for cache keys."""
    compiler = find_compiler(cc)
    compile_flags = [f for t in targets_of(target) for f in _compile_flags(t, compiler, ())]
    flags = [*compile_flags, *_link_flags(target, compiler, ())]
    return f"{compiler.family} {compiler.version}\n{shlex.join(flags)}"


def find_compiler(cc: str | None = None) -> Compiler:
    """The compiler that `cc`, STERNA_CC, the ziglang wheel or the PATH names, in this order."""
    asked = cc or os.environ.get("STERNA_CC")
    if asked:
        return _identify(tuple(shlex.split(asked)))
    zig = _zig_binary()
    if zig is None:
        raise ToolchainError(
            "no C compiler was found: `pip install ziglang`, or set STERNA_CC to gcc or clang",
            [], "", None,
        )  # fmt: skip
    return _identify((zig, "cc"))


@dataclass(frozen=True, slots=True)
class Clang:
    """A plain clang, which compiles for GPUs as well, and the linker of ELF beside it."""

    command: tuple[str, ...]
    linker: tuple[str, ...]
    version: str


@functools.cache
def find_clang() -> Clang:
    """The clang inside the ziglang wheel, or those of the PATH; ToolchainError without any."""
    zig, clang, linker = _zig_binary(), shutil.which("clang"), shutil.which("ld.lld")
    if zig is not None:
        found = Clang((zig, "clang"), (zig, "ld.lld"), "")
    elif clang is not None and linker is not None:
        found = Clang((clang,), (linker,), "")
    else:
        raise ToolchainError(
            "no compiler for GPUs was found: `pip install ziglang`, or put clang and ld.lld on the "
            "PATH",
            [], "", None,
        )  # fmt: skip
    version = _run([*found.command, "--version"], None).strip().splitlines()[0]
    return replace(found, version=version)


def run_tool(command: list[str], folder: Path) -> str:
    """What a tool printed that was run in a folder; ToolchainError, with the sources kept."""
    return _run(command, folder)


def _zig_binary() -> str | None:
    # Called directly, not as `python -m ziglang`, which costs 20 ms a call.
    spec = importlib.util.find_spec("ziglang")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("zig", "zig.exe"):
            if (Path(folder) / name).is_file():
                return str(Path(folder) / name)
    return shutil.which("zig")


@functools.cache
def _identify(command: tuple[str, ...]) -> Compiler:
    text = _run([*command, "--version"], None)
    line = text.strip().splitlines()[0] if text.strip() else ""
    if "clang" not in line and ("gcc" in line.lower() or "Free Software" in text):
        return Compiler("gcc", command, line)
    if len(command) > 1 and command[1] == "cc" and "zig" in Path(command[0]).name:
        release = _run([command[0], "version"], None).strip()
        return Compiler("zig", command, f"{release} ({line})")
    return Compiler("clang", command, line)


def _build(
    units: list[str],
    target: Target,
    compiler: Compiler,
    sanitize: tuple[str, ...],
    folder: Path,
) -> bytes:
    """The library's bytes; `folder` is for everything in between."""
    for i, unit in enumerate(units):
        (folder / f"unit{i}.c").write_text(unit, encoding="utf-8")
    targets = targets_of(target) if target.carried else (target,) * len(units)
    objects = [f"unit{i}.o" for i in range(len(units))]
    compile_unit = [
        [*compiler.command, *_compile_flags(own, compiler, sanitize), f"-DSTERNA_UNIT={i}",
         "-c", f"unit{i}.c", "-o", name]
        for i, (name, own) in enumerate(zip(objects, targets, strict=True))
    ]  # fmt: skip
    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as threads:
        list(threads.map(lambda command: _run(command, folder), compile_unit))
    library = f"library{target.suffix}"
    flags = _link_flags(target, compiler, sanitize)
    _run([*compiler.command, *objects, *flags, "-o", library], folder)
    return (folder / library).read_bytes()


def _compile_flags(target: Target, compiler: Compiler, sanitize: tuple[str, ...]) -> list[str]:
    flags = [*_machine_flags(target, compiler), *_MEANING, *_WARNINGS, *_OUTPUT]
    if "windows" in target.triple:
        flags = [flag for flag in flags if flag != "-fPIC"]
        flags.append("-mno-stack-arg-probe")  # frames above 4 KiB would call into a runtime
    if target.triple.startswith("aarch64") and compiler.family != "zig":
        flags.append("-mno-outline-atomics")  # they would call into a runtime as well
    if "android" in target.triple and compiler.family == "zig":
        # zig drops that flag, and only for Android its clang wants those calls; the code is the
        # same for any Linux, save that Android keeps register x18 to itself.
        flags[flags.index(target.triple)] = target.triple.replace("android", "musl")
        flags += ["-ffixed-x18"] if target.triple.startswith("aarch64") else []
    return flags + _sanitizer_flags(compiler, sanitize)


def _link_flags(target: Target, compiler: Compiler, sanitize: tuple[str, ...]) -> list[str]:
    flags = [*_machine_flags(target, compiler), *_sanitizer_flags(compiler, sanitize), "-O3"]
    if target.suffix == ".wasm":
        return [*flags, "-s", "-nostdlib", "-Wl,--no-entry", "-Wl,--export-dynamic"]
    flags.append("-shared")
    if _needs_runtime(sanitize):
        return flags
    flags += ["-s", "-nostdlib"]
    if "windows" in target.triple:
        flags.append("-lkernel32")
    elif target.suffix == ".so":
        # A missing function is an error here, not at load; one that is here is this library's own,
        # whatever other libraries the process holds.
        flags += ["-Wl,-z,defs", "-Wl,-Bsymbolic"]
    if "android" in target.triple:
        flags.append("-Wl,-z,max-page-size=16384")
    return flags


def _machine_flags(target: Target, compiler: Compiler) -> list[str]:
    if compiler.family == "zig":
        return ["-target", target.triple, f"-mcpu={target.mcpu}"]
    name, *extras = re.split("[+-]", target.mcpu)
    if target.triple.startswith("x86_64"):
        flags = [_TUNING.get(extra, (f"-m{extra}",)) for extra in extras]
        machine = [f"-march={name.replace('_', '-')}", *(flag for some in flags for flag in some)]
    elif target.triple.startswith("aarch64"):
        machine = ["-march=" + "+".join(["armv8-a" if name == "generic" else name, *extras])]
    else:
        machine = [f"-m{extra}" for extra in extras]
    triple = target.triple.split(".")[0]
    # gcc is built for one system and has no such flag: the caller names the right gcc.
    return ([f"--target={triple}"] if compiler.family == "clang" else []) + machine


def _sanitizer_flags(compiler: Compiler, sanitize: tuple[str, ...]) -> list[str]:
    if not sanitize:
        return []
    flags = [f"-fsanitize={','.join(sanitize)}"]
    if _needs_runtime(sanitize):
        return [*flags, "-DSTERNA_HOSTED", "-g1"]
    trap = "-fsanitize-undefined-trap-on-error" if compiler.family == "gcc" else "-fsanitize-trap"
    return [*flags, trap]


def _needs_runtime(sanitize: tuple[str, ...]) -> bool:
    return any(name != "undefined" for name in sanitize)


def _run(command: list[str], folder: Path | None) -> str:
    """What the command printed; ToolchainError, with the sources kept, when it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"the compiler {command[0]!r} cannot be run: {error}; "
            "set STERNA_CC to one that can, or `pip install ziglang`",
            command, str(error), None,
        ) from None  # fmt: skip
    if done.returncode == 0:
        return done.stdout
    raise _failure(command, done.stderr + done.stdout, done.returncode, folder)


def _environment(folder: Path | None) -> dict[str, str]:
    """Keep what zig shares between calls in our cache, and the rest in the temporary folder."""
    environment = dict(os.environ)
    if folder is not None:
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_dir("zig")))
        environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(folder / "zig-cache"))
    return environment


def _failure(command: list[str], log: str, code: int, folder: Path | None) -> ToolchainError:
    first = next((line for line in log.splitlines() if "error" in line), log.strip()[:300])
    message = f"the C compiler ended with code {code}: {first}"
    if folder is None:
        return ToolchainError(f"{message} ({shlex.join(command)})", command, log, None)
    files = sorted(f for pattern in _KEPT for f in folder.glob(pattern))
    kept = cache_dir("failures") / key(*(file.read_bytes() for file in files))[:16]
    kept.mkdir(exist_ok=True)
    for file in files:
        write_atomic(kept / file.name, file.read_bytes())
    named = [part for part in command if (folder / part) in files]
    source = kept / (named[0] if named else "unit0.c")
    repro = f"cd {shlex.quote(str(kept))} && {shlex.join(command)}"
    return ToolchainError(f"{message}\nrepro: {repro}", command, log, source)
