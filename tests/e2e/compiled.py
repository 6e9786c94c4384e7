"""Models converted and compiled for tests, and steps of them by hand.

In: a Hugging Face folder or a config of `tiny`, and a scheme. Out: a model folder with its library,
to be loaded as often as a test likes, and logits of a sequence cut into steps in any way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny

from sterna.base.artifact import CompileOptions
from sterna.base.target import host_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.compiler import compile_model
from sterna.convert import convert_weight, gen_config
from sterna.runtime import cpu
from sterna.runtime.executable import Executable, StepInput

Logits = NDArray[np.float32]
ROWS = 32  # logits of one step: every library gives as many


@dataclass(frozen=True)
class Compiled:
    """A model folder and its library for this machine."""

    folder: Path
    library: Path

    def load(self, *, threads: int = 1, num_pages: int = 64) -> cpu.CpuExecutable:
        tensors = read_mlc_folder(self.folder).tensors
        return cpu.load(self.library, tensors, num_pages=num_pages, threads=threads)


Tiny = Callable[..., Compiled]  # of a config, a scheme, and CompileOptions
Variant = Callable[..., Compiled]  # of a name in tiny.VARIANTS, and CompileOptions
Stories = Callable[[str], Compiled]  # of a scheme


def build(source: Path, output: Path, quantization: str, **options: int) -> Compiled:
    """Convert a Hugging Face folder into `output`, which must be new, and compile it there."""
    convert(source, output, quantization)
    target = host_target()
    library = output / f"model{target.suffix}"
    compile_model(output, target, library, options=CompileOptions(**options))
    return Compiled(output, library)


def convert(source: Path, output: Path, quantization: str) -> Path:
    """The model folder alone, for a test that compiles it in ways of its own."""
    convert_weight(source, output, quantization=quantization)
    gen_config(source, output, quantization=quantization)
    return output


def build_tiny(
    root: Path, config: Mapping[str, object], quantization: str, **options: int
) -> Compiled:
    """The same for random weights of a config."""
    return build_drawn(root, config, tiny.weights(config), quantization, **options)


def build_drawn(
    root: Path,
    config: Mapping[str, object],
    weights: tiny.Weights,
    quantization: str,
    **options: int,
) -> Compiled:
    """The same for given weights of a config."""
    return build(drawn_source(root, config, weights), root / "converted", quantization, **options)


def drawn_source(root: Path, config: Mapping[str, object], weights: tiny.Weights) -> Path:
    """A Hugging Face folder of given weights, with a tokenizer, in `root`."""
    tiny.write_folder(root / "source", config, weights)
    _write_tokenizer(root / "source", int(str(config["vocab_size"])))
    return root / "source"


@dataclass(frozen=True)
class Part:
    """What a step computes of one sequence: `tokens` of it, of which `start` are cached."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]


def step_input(
    parts: Sequence[Part], page_size: int, rows: Sequence[int] | None = None
) -> StepInput:
    """A ragged batch; logits of `rows`, else of each sequence's last token."""
    lengths = [len(part.tokens) for part in parts]
    tables = [p.pages[: -(-(p.start + len(p.tokens)) // page_size)] for p in parts]
    indptr = np.cumsum([0, *lengths])
    return StepInput(
        tokens=ints([token for part in parts for token in part.tokens]),
        positions=ints([p.start + i for p in parts for i in range(len(p.tokens))]),
        seq_indptr=ints(indptr),
        page_indptr=ints(np.cumsum([0, *(len(table) for table in tables)])),
        page_table=ints([page for table in tables for page in table]),
        logit_rows=ints(indptr[1:] - 1 if rows is None else rows),
    )


def all_logits(
    executable: Executable, prompt: Sequence[int], chunks: Sequence[int], pages: Sequence[int]
) -> Logits:
    """Logits at every position, the prompt computed in `chunks` (their sum is its length).

    A chunk of more than ROWS tokens is computed again for every ROWS of its logits.
    """
    page_size = executable.manifest.kv_cache.page_size
    found, start = [], 0
    for size in chunks:
        part = Part(prompt[start : start + size], start, pages)
        for first in range(0, size, ROWS):
            rows = range(first, min(first + ROWS, size))
            found.append(executable.step(step_input([part], page_size, rows)).copy())
        start += size
    assert start == len(prompt)
    return np.concatenate(found)


def cut(length: int, chunk: int) -> list[int]:
    """`length` in chunks of one size, and a rest."""
    return [min(chunk, length - start) for start in range(0, length, chunk)]


def greedy(executable: Executable, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` most likely next tokens, one after another."""
    return [int(row.argmax()) for row in greedy_logits(executable, prompt, count)]


def greedy_logits(executable: Executable, prompt: Sequence[int], count: int) -> Logits:
    """Logits of `count` steps, each of which takes the most likely token of the one before."""
    page_size = executable.manifest.kv_cache.page_size
    pages = range(-(-(len(prompt) + count) // page_size))
    found: list[Logits] = []
    part = Part(prompt, 0, pages)
    for _ in range(count):
        found.append(executable.step(step_input([part], page_size))[0].copy())
        part = Part([int(found[-1].argmax())], part.start + len(part.tokens), pages)
    return np.array(found)


def ints(values: object) -> NDArray[np.int32]:
    return np.asarray(list(values), dtype=np.int32)  # type: ignore[call-overload]


def _write_tokenizer(folder: Path, size: int) -> None:
    """A model folder must have one; here each id is a word."""
    vocab = {f"w{i}": i for i in range(size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
