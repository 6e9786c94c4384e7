"""An artifact whose kernels are launched one by one, as a file: manifest, code and constants.

In: a path. Out: the manifest and its blobs, each as long and with the hash that the manifest
says, or ArtifactError. Nothing here compiles or runs the code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import MANIFEST_MARK, Manifest, decode
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError
from sterna.runtime.library import manifest_bytes

CODE = "code"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A whole artifact. `constants` are tensors known at compile time, by name."""

    manifest: Manifest
    code: bytes
    constants: dict[str, NDArray[np.float32]]


def read_bundle(path: Path) -> Bundle:
    """The artifact in a file; ArtifactError where it is damaged or of another kind."""
    text = manifest_bytes(path)
    manifest = decode(text)
    data = path.read_bytes()
    at = data.find(MANIFEST_MARK) + len(MANIFEST_MARK) + 8 + len(text) + 1
    blobs: dict[str, bytes] = {}
    for blob in manifest.blobs:
        part = data[at : at + blob.size]
        if blob.size < 0 or hashlib.sha256(part).hexdigest() != blob.sha256:
            raise ArtifactError(f"{path} is damaged or truncated: compile the model again")
        blobs[blob.name] = part
        at += blob.size
    if CODE not in blobs or at != len(data):
        raise ArtifactError(f"{path} was compiled for {manifest.target}, which has no kernels here")
    constants = {}
    for c in manifest.constants:
        if c.name not in blobs or c.dtype != "f32":
            raise ArtifactError(f"{path} lacks its constant {c.name!r}: compile the model again")
        values = np.frombuffer(blobs[c.name], dtype(c.dtype).numpy)
        constants[c.name] = values.reshape(c.shape)
    return Bundle(manifest, blobs[CODE], constants)
