"""The thread pool of generated libraries, driven by real threads, plain and under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sterna.codegen.toolchain import find_compiler

HERE = Path(__file__).parent
POOL = HERE.parents[1] / "src" / "sterna" / "codegen"
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{POOL}")

Run = Callable[..., str]


def build(folder: Path, command: list[str], *flags: str) -> Run:
    program = folder / "pool"
    source = str(HERE / "pool_harness.c")
    done = subprocess.run(
        [*command, *STRICT, *flags, source, "-o", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    def run(threads: int, forks: int, mode: str) -> str:
        line = [str(program), str(threads), str(forks), mode]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    return run


def compiler() -> list[str]:
    """What compiles libraries as well: it is always there."""
    return list(find_compiler().command)


def gcc() -> list[str]:
    """The sanitizers' runtimes come with gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which brings the sanitizers' runtimes")
    return ["gcc"]


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("pool"), compiler(), "-O2")


@pytest.mark.parametrize("threads", [1, 2, 4, 13])
def test_every_item_is_done_once(optimized: Run, threads: int) -> None:
    assert optimized(threads, 20_000, "plain") == "ok\n"


@pytest.mark.parametrize("threads", [1, 2, 3, 16, 1024])
def test_chunks_are_all_items_and_shrink(optimized: Run, threads: int) -> None:
    assert optimized(threads, 2_000_000_000, "cut") == "ok\n"


@pytest.mark.parametrize("threads", [2, 4])
def test_workers_that_come_late_or_sleep(optimized: Run, threads: int) -> None:
    assert optimized(threads, 20_000, "late") == "ok\n"


def test_a_busy_neighbour_on_every_processor(optimized: Run) -> None:
    assert optimized(2, 300, "busy") == "ok\n"


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_under_sanitizers(tmp_path: Path, sanitizers: str) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [*gcc(), f"-fsanitize={sanitizers}", str(probe), "-o", str(tmp_path / "probe")]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"this gcc cannot link -fsanitize={sanitizers}: {built.stderr[-200:].strip()}")
    ran = subprocess.run([tmp_path / "probe"], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"an empty program fails under {sanitizers} here: {ran.stderr[-200:].strip()}")
    run = build(tmp_path, gcc(), "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover")
    for mode in ("plain", "late"):
        assert run(4, 500, mode) == "ok\n"


def test_a_lost_chunk_would_be_seen(tmp_path: Path) -> None:
    """The harness can fail: a pool whose last item is never done."""
    text = (POOL / "pool.h").read_text()
    broken = text.replace("work(args, 0, items, 0);", "work(args, 0, items - 1, 0);")
    assert broken != text
    (tmp_path / "pool.h").write_text(broken)
    run = build(tmp_path, compiler(), "-O1", f"-iquote{tmp_path}")
    assert "fork" in run(1, 100, "plain")


def test_the_default_compiler_takes_it_hosted(tmp_path: Path) -> None:
    command = [*find_compiler().command, *STRICT, "-O2", "-c", str(HERE / "pool_harness.c")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "pool.o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
