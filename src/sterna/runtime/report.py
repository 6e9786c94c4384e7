"""What a device tells of itself, for `sterna devices`, and whether there is one of that number."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.errors import Unavailable


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


def check_number(what: str, index: int, count: int) -> None:
    """Unavailable where there are fewer; `what` names one, as "CUDA device"."""
    if not 0 <= index < count:
        here = "only 0 is" if count == 1 else f"0 to {count - 1} are"
        raise Unavailable(f"{what} {index} was asked for, and {here} here; see `sterna devices`")
