"""Toolkits of GPUs' makers: what takes part in making a library where it is installed.

None has to be: without one a library holds what the device's driver or system finishes when a model
is loaded. In: the PATH. Out: where the tools are, and a line of `sterna devices`. Knows no target.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_SECONDS = 60  # that a tool may take to say whether it has what is asked


@dataclass(frozen=True, slots=True)
class Toolkit:
    """Tools that are used when all of them are here.

    `name` is what people call them. `adds` says what a library has then, `without` what it has
    else. `asks` is a command of theirs that fails where the tools are there in name only.
    """

    name: str
    tools: tuple[str, ...]
    adds: str
    without: str
    asks: tuple[str, ...] = ()

    def found(self) -> tuple[str, ...]:
        """The paths of all tools; none where one lacks."""
        paths = [shutil.which(tool) for tool in self.tools]
        if None in paths or (self.asks and not _succeeds(self.asks)):
            return ()
        return tuple(path for path in paths if path is not None)

    def report(self) -> str:
        """What `sterna devices` says of it."""
        paths = self.found()
        if paths:
            return f"{', '.join(paths)}: {self.adds}"
        return f"no {self.name} here: {self.without}"


def _succeeds(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
