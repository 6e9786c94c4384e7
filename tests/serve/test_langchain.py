"""LangChain's own tests of a chat model, against `sterna serve` with the demo model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import Process

HERE = Path(__file__).resolve().parent
# Apart from the tests' own packages: langchain-tests brings pytest plugins that act on every test.
PACKAGES = HERE.parents[1] / ".venv" / "langchain"
OPTIONS = (
    *("-c", os.devnull, "--noconftest", "-q", "-rx", "-p", "no:cacheprovider"),
    *("-p", "no:schemathesis", "-o", "asyncio_mode=auto"),
    *("-o", "asyncio_default_fixture_loop_scope=session"),
    *("-o", "asyncio_default_test_loop_scope=session"),
)


@pytest.mark.slow
def test_langchains_own_tests_pass(demo_process: Process, tmp_path: Path) -> None:
    if not PACKAGES.is_dir():
        pytest.skip("needs .venv/langchain, which `make test` installs")
    tests = ["--rootdir", str(tmp_path), str(HERE / "langchain" / "standard.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *tests],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(PACKAGES),
            "STERNA_URL": f"{demo_process.url}/v1",
            "STERNA_MODEL": demo_process.model,
            "LANGSMITH_TRACING": "false",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) >= 30
