"""A folder that browsers fetch, read natively: its index, its integrity, the program for a device.

In: the folder, and what a device offers. Out: the WebIndex, and the path of the artifact that the
device runs: the first whose features and limits it has, as a browser chooses. Weights are read
through the folder's own index of a converted model, which it keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sterna.base.errors import ArtifactError, Unavailable
from sterna.base.web import INDEX, Program, WebIndex, decode


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device has. `imitated`: it computes on a processor, where barriers are slow."""

    name: str
    features: frozenset[str]
    limits: Mapping[str, int]
    imitated: bool = False


def is_web_folder(path: Path) -> bool:
    """Whether `sterna compile` made this folder for browsers."""
    return (path / INDEX).is_file()


def read_index(folder: Path) -> WebIndex:
    """The index of a folder; ArtifactError where it is none or damaged."""
    path = folder / INDEX
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    return decode(data)


def verify(folder: Path, index: WebIndex) -> None:
    """Read every file and compare it with the index; ArtifactError names what differs."""
    for listed in index.files:
        path = folder / listed.name
        try:
            with open(path, "rb") as file:
                size = path.stat().st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
        if (size, digest) != (listed.size, listed.sha256):
            raise ArtifactError(f"{path} is not the file that {INDEX} lists: copy the folder again")


def choose_program(index: WebIndex, offer: Offer) -> Program:
    """The program for a device; Unavailable naming what it lacks for each."""
    missing: dict[str, str] = {}
    fitting = []
    for program in index.programs:
        lacks = _lacks(program, offer)
        if lacks:
            missing[program.target] = lacks
        else:
            fitting.append(program)
    if not fitting:
        told = "; ".join(f"{target} wants {lacks}" for target, lacks in missing.items())
        raise Unavailable(
            f"{offer.name} runs none of the model's programs: {told}; compile the model with "
            "smaller limits, or choose another device"
        )
    plain = [p for p in fitting if not p.barriers]
    return plain[0] if offer.imitated and plain else fitting[0]


def _lacks(program: Program, offer: Offer) -> str:
    features = [f for f in program.features if f not in offer.features]
    limits = [
        f"{name} of {least} (it has {offer.limits.get(name, 0)})"
        for name, least in program.limits.items()
        if offer.limits.get(name, 0) < least
    ]
    return ", ".join([*features, *limits])
