"""What the engine asks of a loaded model, whatever device it runs on.

One step runs a ragged batch: the tokens of all sequences lie in one flat array. A sequence's
cached keys and values live in pages; the batch says which. Any device (and the null device for
tests) implements `Executable`; the engine knows nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest
from sterna.runtime.sampling import SampleInput

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Grid = tuple[int, int]  # rows and columns


@dataclass(frozen=True, slots=True)
class StepInput:
    """One ragged batch of b sequences and n tokens. All arrays are int32.

    Sequence s owns tokens `seq_indptr[s]:seq_indptr[s+1]`, at consecutive `positions`, and the
    pages `page_table[page_indptr[s]:page_indptr[s+1]]`: position p lies in its page
    p // page_size. Pages must already cover every position of the step. Logits are computed for
    the tokens `logit_rows` only (indices into the n tokens, ascending). Sequence s goes through
    adapter `adapters[s]`, -1 for none; None is none for all. Where `is_given` is not 0, a token's
    row of `given`, float32, stands for its embedding: what `Executable.see` made of an image.
    A model whose tokens have a position on several axes turns them by `rope_positions`. Where
    some layers are recurrent, sequence s has its states in slot `slots[s]`; None is slot s.
    """

    tokens: Ints  # [n]
    positions: Ints  # [n]
    seq_indptr: Ints  # [b + 1]
    page_indptr: Ints  # [b + 1]
    page_table: Ints  # [p]
    logit_rows: Ints  # [r]
    adapters: Ints | None = None  # [b]
    given: Floats | None = None  # [n, hidden]; None: all tokens have their embeddings
    is_given: Ints | None = None  # [n]; with `given`
    rope_positions: Ints | None = None  # [n, axes]; None: `positions` on each axis
    slots: Ints | None = None  # [b]


class Executable(Protocol):
    """A loaded model with its KV cache."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def num_pages(self) -> int:
        """Pages in the cache, fixed when the executable was loaded."""
        ...

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        """Append the batch's keys and values to the cache; return logits [r, vocab_size].

        An embedding model gives hidden states [r, hidden_size] instead.

        The array belongs to the executable and is overwritten by the next step.
        """
        ...

    def run(self, batch: StepInput) -> None:
        """`step` without handing over the logits, which may stay on the device."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """Those of the last step, as `step` returns them."""
        ...

    def see(self, patches: Floats, grid: Grid | None = None) -> Floats:
        """Rows [tokens, hidden] that stand for an image, of its patches [patches, width].

        `grid` has the rows and columns of its tokens, where images may have any size. Nothing is
        kept; the array is the caller's. See base.artifact.Vision for the sizes.
        """
        ...

    def sample(self, given: SampleInput) -> Ints:
        """Choose a token [r] from rows of the last step's logits; see runtime.sampling."""
        ...

    def copy_page(self, source: int, destination: int) -> None:
        """Copy one page of the cache in all layers (a fork's copy on write)."""
        ...

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """A copy of one page of the cache, all layers, as bytes that `write_page` takes."""
        ...

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """Fill one page of the cache with what `read_page` gave of a page of an equal cache."""
        ...

    def close(self) -> None:
        """Free memory and stop threads. Safe to call twice."""
        ...
