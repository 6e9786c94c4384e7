"""What coarser activations do to a model's next tokens, measured when such a library is compiled.

In: a model folder and a library. Out: an Effect, against the same model compiled with the scheme's
usual activations, on the texts that conversion measures with. It runs both libraries here.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sterna.base.artifact import CompileOptions
from sterna.base.target import Target, is_of_host
from sterna.checkpoint.model_folder import open_model
from sterna.compiler import compile_model
from sterna.convert.sample_text import DOCUMENT_TOKENS, prompts
from sterna.quality import agreement, likelihood
from sterna.runtime import cpu, host
from sterna.runtime.library import read_manifest
from sterna.runtime.memory import packed_bytes

_MOST_BYTES = 64 << 20  # of weights: seconds, not minutes


@dataclass(frozen=True, slots=True)
class Effect:
    """Perplexity before and after, share of equal most likely tokens, divergence in nats."""

    tokens: int
    before: float
    after: float
    top1: float
    mean_kl: float

    def __str__(self) -> str:
        return (
            f"perplexity {self.before:.3f} with usual activations, {self.after:.3f} with these; "
            f"{self.top1:.1%} of the most likely tokens are the same, KL divergence "
            f"{self.mean_kl:.2g} nats ({self.tokens} tokens)"
        )


def not_run_here(target: Target) -> str | None:
    """Why no effect can be told for a target; None where one can."""
    found = host.cpu_features()
    missing = [f for f in target.features if found is not None and f not in found]
    if target.group_threads or target.carried or missing or not is_of_host(target):
        return f"programs for {target.spec} are not run for it here"
    return None


def unmeasurable(target: Target, library: Path, *, asked: bool) -> str | None:
    """Why the effect of a library is not told; None where it is. `asked`: however long it takes."""
    if why := not_run_here(target):
        return why
    manifest = read_manifest(library)
    if manifest.model.pooling is not None:
        return "the model writes no text"
    if not asked and sum(packed_bytes(param) for param in manifest.params) > _MOST_BYTES:
        return "the model is large; compile with --measure to do it, in a minute or more"
    return None


def effect(folder: Path, target: Target, library: Path, settings: dict[str, Any]) -> Effect:
    """Compile the usual library besides, run both, compare."""
    manifest = read_manifest(library)
    most = min(DOCUMENT_TOKENS, manifest.model.context_window_size)
    texts = [text[:most] for text in prompts(folder, manifest.model.vocab_size)]
    pages = -(-most // manifest.kv_cache.page_size)
    weights = open_model(folder).tensors
    options = CompileOptions(**{**settings, "activations": None})
    with TemporaryDirectory(prefix="sterna-effect-") as name:
        usual = compile_model(folder, target, Path(name) / library.name, options=options)
        with (
            closing(cpu.load(usual, weights, num_pages=pages)) as reference,
            closing(cpu.load(library, weights, num_pages=pages)) as model,
        ):
            before, after = likelihood(reference, texts), likelihood(model, texts)
            found = agreement(reference, model, texts)
    return Effect(before.tokens, before.perplexity, after.perplexity, found.top1, found.mean_kl)
