"""Puts the built package for browsers, and its page, into the wheel for `sterna serve --web`.

In: `web/dist`, which `npm run build` makes, and `web/demo`. Out: `sterna/serve/web/`. A
wheel that is made where the package is not built lacks them, and `sterna serve --web` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WebFiles(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        web = Path(self.root) / "web"
        if version == "editable" or not (web / "dist" / "index.js").is_file():
            return
        for part in ("dist", "demo"):
            build_data["force_include"][str(web / part)] = f"sterna/serve/web/{part}"
