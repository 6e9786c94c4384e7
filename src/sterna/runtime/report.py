"""What a device tells of itself, for `sterna devices`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device. `detail` says what was found; `missing` what is wanted, "" when nothing is."""

    name: str
    present: bool
    detail: str
    missing: str
