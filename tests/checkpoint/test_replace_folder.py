"""A writer killed at any system call leaves the old model or the new one, and no litter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sterna.base import errors
from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.beside import PartialFolder, recover, replace_file

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers: POSIX only")

# One process forks a writer for every kill point, so numpy is imported once.
KILLS = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from sterna.checkpoint import mlc
from sterna.checkpoint.mlc import MlcWriter, check_md5, read_mlc_folder

mlc.SHARD_BYTES = 1000
folder = Path(sys.argv[1]) / "M"

def write(value, count):
    with MlcWriter(folder) as out:
        for i in range(count):
            out.add(f"t{i}", np.full(150, value, np.uint32))
        out.add_file("mlc-chat-config.json", b"{}")
        out.commit()

def dying(call, state):
    def wrapped(*args, **kwargs):
        state["left"] -= 1
        if state["left"] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

def arm(left):
    state = {"left": left}
    for name in ("fsync", "rename", "mkdir", "open", "unlink", "rmdir", "close"):
        setattr(os, name, dying(getattr(os, name), state))

outcomes = []
for point in range(200):
    write(1, 3)
    pid = os.fork()
    if pid == 0:
        arm(point)
        write(2, 5)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    model = read_mlc_folder(folder)
    check_md5(model)
    values = {int(v) for ref in model.tensors.values() for v in ref.read()}
    assert (values, len(model.tensors)) in (({1}, 3), ({2}, 5)), (point, values)
    outcomes.append(values.pop())
    if os.WIFEXITED(status):
        break
write(3, 1)
assert os.listdir(folder.parent) == ["M"], os.listdir(folder.parent)
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
print("".join(map(str, outcomes)))
"""


def python_path() -> dict[str, str]:
    """The environment in which a child finds the package that is being tested."""
    return {**os.environ, "PYTHONPATH": str(Path(errors.__file__).parents[2])}


@posix
def test_kill_at_every_step_leaves_old_or_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path)],
        capture_output=True,
        text=True,
        env=python_path(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.strip()
    assert outcomes == "1" * outcomes.count("1") + "2" * outcomes.count("2")
    assert outcomes.count("1") > 8, "kills before the swap"
    assert outcomes.count("2") > 2, "kills after it"


def test_missing_folder_is_restored_from_aside(tmp_path: Path) -> None:
    (tmp_path / ".M.old-12").mkdir()
    (tmp_path / ".M.old-12" / "x").write_text("old")
    (tmp_path / ".M.partial-12").mkdir()
    recover(tmp_path / "M")
    assert (tmp_path / "M" / "x").read_text() == "old"


def test_a_folder_in_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "M").mkdir()
    (tmp_path / ".M.old-12").mkdir()
    recover(tmp_path / "M")
    assert list((tmp_path / "M").iterdir()) == []


@posix
def test_litter_of_the_dead_is_swept_and_the_living_left(tmp_path: Path) -> None:
    (tmp_path / ".M.partial-12").mkdir()
    (tmp_path / ".M.partial-12" / "x").write_text("half")
    (tmp_path / ".M.partial-notes").mkdir()
    (tmp_path / ".N.partial-12").mkdir()
    living = PartialFolder(tmp_path / "M")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {living.path.name, ".M.partial-notes", ".N.partial-12"}
    with pytest.raises(UsageError, match="already being written"):
        PartialFolder(tmp_path / "M")
    assert living.path.is_dir()
    living.swap_in()
    assert (tmp_path / "M").is_dir()


@posix
def test_a_swap_that_fails_gives_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "x").write_text("old")
    partial = PartialFolder(tmp_path / "M")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if source == partial.path:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        partial.swap_in()
    partial.discard()
    assert (tmp_path / "M" / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["M"]


def write_half(path: Path) -> None:
    with replace_file(path) as file:
        file.write(b"half")
        raise OSError(5, "Input/output error")


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    with replace_file(path) as file:
        file.write(b"old")
    with pytest.raises(CheckpointError, match=r"cannot write .*a\.bin"):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
