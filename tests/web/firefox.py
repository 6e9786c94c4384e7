"""Firefox with WebGPU on lavapipe, whose adapter has f16: a page opens there and tells the server.

Debian has no geckodriver, and Playwright drives a Firefox of its own only, so nothing drives this
one: it opens one address in an empty profile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("firefox", "firefox-esr")
DRIVERS = Path("/usr/share/vulkan/icd.d")
PREFERENCES: dict[str, bool | int | str] = {
    "dom.webgpu.enabled": True,
    "dom.webgpu.workers.enabled": True,
    "gfx.webgpu.ignore-blocklist": True,
    "dom.max_script_run_time": 0,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "extensions.systemAddon.update.enabled": False,
}


@contextmanager
def opened(url: str, profile: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Firefox with a page open, and its profile in an empty folder; ended with the block."""
    lines = [f"user_pref({json.dumps(n)}, {json.dumps(v)});\n" for n, v in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [_program(), "--headless", "--no-remote", "--profile", str(profile), url]
    driver = {
        "VK_DRIVER_FILES": str(_driver()),
        "HOME": str(profile),
        "MOZ_CRASHREPORTER_DISABLE": "1",
    }
    with (profile / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            command, env=os.environ | driver, stdout=said, stderr=said, start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _program() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs Firefox: none of {', '.join(NAMES)} is here")
    return found


def _driver() -> Path:
    """The description of Mesa's Vulkan driver for processors."""
    found = next(iter(sorted(DRIVERS.glob("lvp_icd*.json"))), None)
    if found is None:
        pytest.skip(f"needs lavapipe, Mesa's Vulkan driver, in {DRIVERS}")
    return found
