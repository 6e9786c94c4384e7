"""What a device tells of itself, for `sterna devices`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device. `detail` says what was found; `missing` what is wanted, "" when nothing is.

    `faster`: hardware whose memory feeds a model faster than the processor's does, a GPU with
    memory of its own or one that is built for it.
    """

    name: str
    present: bool
    detail: str
    missing: str
    faster: bool = False
