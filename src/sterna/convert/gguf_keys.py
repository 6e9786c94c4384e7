"""Metadata of a GGUF file under its architecture's prefix, each value of the type it must have.

In: an opened file. Out: numbers and flags; UnsafeFile for what is absent or of another type. What
they mean is for the rows of `gguf_architectures` and for `gguf_model`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sterna.base.errors import UnsafeFile, UnsupportedModel
from sterna.checkpoint.gguf import GgufFile


class Keys:
    """Typed access; a name is what follows `general.architecture` and a dot."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.prefix = str(file.metadata.get("general.architecture"))

    @property
    def layers(self) -> int:
        """Layers of the model, without those behind the last that guess tokens ahead."""
        ahead = self.positive("nextn_predict_layers") if self.get("nextn_predict_layers") else 0
        return max(1, self.positive("block_count") - ahead)

    def guesses(self, name: str) -> bool:
        """Whether a tensor belongs to a layer that guesses ahead."""
        parts = name.split(".")
        layer = int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else -1
        return layer >= self.layers and bool(self.get("nextn_predict_layers"))

    def holds(self, own: str) -> bool:
        """Whether any layer has a tensor, or the whole model one of that name."""
        names = (own, *(f"blk.{i}.{own}" for i in range(min(self.layers, len(self.file.tensors)))))
        return any(name in self.file.tensors for name in names)

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.file.metadata

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.prefix}.{key}")

    def positive(self, key: str, default: int | None = None) -> int:
        found = self.get(key)
        if isinstance(found, np.ndarray) and found.size and (found == found[0]).all():
            found = int(found[0])  # a number a layer, all of them equal
        if found is None and default is not None:
            return default
        if isinstance(found, np.ndarray):
            raise UnsupportedModel(
                f"{self.file.path}: {self.prefix}.{key} differs from layer to layer, which no "
                "family computes yet"
            )
        if type(found) is not int or not 0 < found < 2**31:
            raise self._wrong(key, "a positive whole number", found)
        return found

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number that may be 0."""
        found = self.get(key)
        if type(found) is int and found == 0:
            return 0
        return self.positive(key, default)

    def each(self, key: str) -> list[int]:
        """A whole number for each layer."""
        found = self.get(key)
        right = isinstance(found, np.ndarray) and len(found) == self.layers and found.dtype != "?"
        if not right or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31:
            raise self._wrong(key, f"a whole number for each of {self.layers} layers", found)
        return [int(number) for number in found]

    def flag(self, key: str) -> bool:
        found = self.get(key)
        if not isinstance(found, bool):
            raise self._wrong(key, "true or false", found)
        return found

    def flags(self, key: str) -> list[bool]:
        """A flag for each layer."""
        found = self.get(key)
        if not isinstance(found, np.ndarray) or found.dtype != "?" or len(found) != self.layers:
            raise self._wrong(key, f"true or false for each of {self.layers} layers", found)
        return [bool(flag) for flag in found]

    def number(self, key: str, default: float) -> float:
        """A float32, as the shortest decimal that means it: 1e-05 and not 9.999999747e-06."""
        found = self.get(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not np.isfinite(found):
            raise self._wrong(key, "a number", found)
        return float(str(np.float32(found)))

    def _wrong(self, key: str, wanted: str, found: object) -> UnsafeFile:
        return UnsafeFile(
            f"{self.file.path}: {self.prefix}.{key} must be {wanted}, found {found!r:.40}"
        )
