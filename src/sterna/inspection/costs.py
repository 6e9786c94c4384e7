"""What the kernels of a step cost: the manifest's formulas at the dims of one typical step.

In: a manifest and a number of cached tokens. Out: a StepCost an entry point. The step serves one
sequence if nothing else is asked for: decode takes 1 token, verify a tile of them, prefill a whole
chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.base.artifact import QUERY_TILE, Entry, Kernel, Launch, Manifest
from sterna.base.errors import ArtifactError, UsageError
from sterna.base.sizes import evaluate


@dataclass(frozen=True, slots=True)
class KernelCost:
    """One kernel in one step: how often it is launched, and the cost of a single launch."""

    kernel: Kernel
    launches: int
    flops: int
    bytes: int
    items: int

    @property
    def intensity(self) -> float | None:
        """Operations a byte; None where nothing moves."""
        return self.flops / self.bytes if self.bytes else None


@dataclass(frozen=True, slots=True)
class StepCost:
    """One run of an entry point at `dims`, which hold "context" too."""

    entry: Entry
    dims: Mapping[str, int]
    kernels: tuple[KernelCost, ...]

    @property
    def flops(self) -> int:
        return sum(cost.launches * cost.flops for cost in self.kernels)

    @property
    def bytes(self) -> int:
        return sum(cost.launches * cost.bytes for cost in self.kernels)


def chosen_context(manifest: Manifest, context: int | None) -> int:
    """The context asked for, or a quarter of the window; UsageError for one past the window."""
    window = manifest.model.context_window_size
    if context is None:
        return max(0, window // 4)
    if not 0 <= context <= window:
        raise UsageError(
            f"--context is {context}, the library was compiled for a window of {window} tokens; "
            f"possible is 0 to {window}"
        )
    return context


def step_costs(manifest: Manifest, context: int) -> tuple[StepCost, ...]:
    """The costs of every entry point, kernels in the order of their first launch.

    Raises ArtifactError for a program that launches what the manifest does not have.
    """
    return tuple(step_cost(manifest, entry, context) for entry in manifest.entries)


def step_cost(
    manifest: Manifest,
    entry: Entry,
    context: int,
    tokens: int | None = None,
    rows: int | None = None,
    sequences: int = 1,
) -> StepCost:
    """The cost of a step of so many tokens and rows of logits, as typical where None.

    `context` and `tokens` are of each of the sequences.
    """
    kernels = {kernel.name: kernel for kernel in manifest.kernels}
    dims = typical_dims(entry, manifest, context, tokens, sequences)
    if rows is not None and "r" in dims:
        dims["r"] = rows
    costs = (_cost(kernels, name, n, dims) for name, n in launches(entry).items())
    return StepCost(entry, dims, tuple(costs))


def launches(entry: Entry) -> dict[str, int]:
    """How often a step launches each kernel."""
    counts: dict[str, int] = {}
    for step in entry.steps:
        body = (step,) if isinstance(step, Launch) else step.body
        times = 1 if isinstance(step, Launch) else step.count
        for launch in body:
            counts[launch.kernel] = counts.get(launch.kernel, 0) + times
    return counts


def typical_dims(
    entry: Entry, manifest: Manifest, context: int, tokens: int | None = None, sequences: int = 1
) -> dict[str, int]:
    """Dims of a step that serves sequences alike, within the entry's bounds, and "context"."""
    bounds = {dim.name: dim for dim in entry.dims}
    most = bounds["n"].hi if "n" in bounds else 1
    tokens = tokens or {"decode": 1, "verify": min(most, QUERY_TILE)}.get(entry.name, most)
    wanted = step_dims(manifest, context, tokens, sequences)
    if entry.name == "verify":
        wanted["r"] = tokens * sequences
    dims = {name: max(dim.lo, min(dim.hi, wanted.get(name, 1))) for name, dim in bounds.items()}
    window = manifest.model.sliding_window_size
    return dims | {"context": min(context, window) if window > 0 else context}


def step_dims(manifest: Manifest, context: int, tokens: int, sequences: int) -> dict[str, int]:
    """Dims of a step of `tokens` for each of some sequences, whose last ones have logits."""
    page = max(1, manifest.kv_cache.page_size)
    return {
        "n": sequences * tokens,
        "b": sequences,
        "p": sequences * -(-(context + tokens) // page),
        "r": sequences,
        "t": sequences * -(-tokens // QUERY_TILE),
    }


def _cost(
    kernels: Mapping[str, Kernel], name: str, count: int, dims: Mapping[str, int]
) -> KernelCost:
    kernel = kernels.get(name)
    if kernel is None:
        raise ArtifactError(
            f"the library launches a kernel {name!r} that its manifest lacks: compile the model "
            "again"
        )
    flops, moved, items = (evaluate(f, dims) for f in (kernel.flops, kernel.bytes, kernel.items))
    if min(count, flops, moved, items) < 0:
        raise ArtifactError(f"the library's kernel {name!r} has a negative cost")
    return KernelCost(kernel, count, flops, moved, items)
