"""How a server is reached, by whom, and how much it takes from anybody: checked when made.

In: the user's settings. Out: ServeOptions, valid by construction. Knows no engine and no socket.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sterna.base.errors import UsageError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")
_KEY = re.compile(r"[\x21-\x7e]+")


def _setting(default: Any, kind: type, help: str, lo: float, hi: float) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help, "lo": lo, "hi": hi})


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """UsageError names the setting that makes no sense.

    Without `api_keys` only a loopback address may be bound. `allow_hosts` are names beside the
    machine's own addresses by which a client may call; `allow_origins` are web pages of other
    origins that may read answers ("*": all). `web` are folders for browsers: with any of them the
    server computes nothing and serves a page that runs them.
    """

    host: str = "localhost"
    port: int = _setting(8000, int, "where to listen (0: any free port)", 0, 65535)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    ui: bool = False
    web: tuple[Path, ...] = ()
    max_body: int = _setting(16 * 2**20, int, "most bytes of a request", 1024, 2**31)
    max_head: int = _setting(32 * 2**10, int, "most bytes of its headers", 1024, 2**20)
    max_requests: int = _setting(4096, int, "most requests answered or queued at once", 1, 10**6)
    read_timeout: float = _setting(30.0, float, "seconds for a request to arrive", 0.1, 3600)
    write_timeout: float = _setting(60.0, float, "seconds a reader may stall", 0.1, 3600)
    idle_timeout: float = _setting(60.0, float, "seconds an idle connection is kept", 0.1, 3600)
    grace: float = _setting(30.0, float, "seconds to finish answers after SIGTERM", 0, 3600)

    def __post_init__(self) -> None:
        for option in fields(self):
            if "lo" in option.metadata:
                _check_range(option.name, option.metadata, getattr(self, option.name))
        for origin in self.allow_origins:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"{origin!r} is no origin; possible are https://name:port, without a path, or *"
                )
        for key in self.api_keys:
            if not _KEY.fullmatch(key):
                raise UsageError("an API key is empty or has spaces or other than ASCII in it")
        if self.web and self.ui:
            raise UsageError("--web has a page of its own; leave out --ui")
        if not self.api_keys and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, so a key is needed: give one "
                "with --api-key or --api-key-file, or listen on localhost"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; False for any name but localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_keys(path: Path) -> Iterable[str]:
    """Keys of a file, one a line; empty lines and those that begin with # are none."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the API keys in {path}: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"{path} holds no API key; write one a line")
    return keys


def _check_range(name: str, limits: Any, value: Any) -> None:
    kind, lo, hi = limits["kind"], limits["lo"], limits["hi"]
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not lo <= value <= hi:
        raise UsageError(f"{name} is {value!r}, possible is {lo} to {hi}")
