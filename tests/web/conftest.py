"""The package for browsers, `web/`: skipped where node or what builds it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import build


@pytest.fixture(scope="session")
def dist() -> Path:
    """The built package."""
    return build()
