"""A converted tiny model, its kernels, and one kernel of each kind that is quick to build."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from compiled import build_tiny, tiny

from sterna.base.artifact import CompileOptions
from sterna.base.target import host_target
from sterna.tune.session import Progress, kernels_of

SMALL = CompileOptions(prefill_chunk_size=16, max_batch_size=2)  # as `folder` is compiled


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of grouped queries; its library `model.so` has the shipped plans."""
    root = tmp_path_factory.mktemp("tuned")
    return build_tiny(
        root, tiny.VARIANTS["llama2-gqa"], "q0f32", prefill_chunk_size=16, max_batch_size=2
    ).folder


@pytest.fixture
def kernels(folder: Path) -> list[Progress]:
    """Anew for each test: a session fills them."""
    return kernels_of(folder, host_target(), SMALL)


@pytest.fixture
def matvec(kernels: list[Progress]) -> Progress:
    return next(k for k in kernels if k.shipped.rule == "matvec")
