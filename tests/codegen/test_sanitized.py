"""The kernel tests once more with undefined behaviour trapped, in a process that may die of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_library import SANITIZE, KernelLibrary

from sterna.base.dtype import I64
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.loop import PrimFunc, Store

TESTS = Path(__file__).resolve().parents[1]
SELECTED = (
    "codegen/test_c.py",
    "kernels/test_attention.py",
    "kernels/test_kv_cache.py",
    "kernels/test_sample.py",
)


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS / "codegen")])
    environment = os.environ | {SANITIZE: "undefined", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=TESTS, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("selected", SELECTED)
def test_no_undefined_behaviour(selected: str) -> None:
    done = sanitized("-m", "pytest", "-q", str(TESTS / selected))
    assert done.returncode == 0, done.stdout + done.stderr


def test_undefined_behaviour_would_be_trapped() -> None:
    """An i64 that overflows ends the process."""
    done = sanitized("-c", "import test_sanitized; test_sanitized.overflow()")
    assert done.returncode < 0, done.stdout + done.stderr


def overflow() -> None:
    x = Buffer("x", I64, (wrap(2),))
    body = Store(x, (wrap(0),), x[0] + x[1])
    func = PrimFunc("f", (x,), (Var("n"),), body)
    library = KernelLibrary([func])
    library.run("f", {x: np.full(2, 2**62)}, {func.dims[0]: 1})
