"""How a quantized model's next tokens differ from its source's, on fixed prompts, at conversion.

In: a plan, and the parts of weights that were not rounded to nearest. Out: Quality: the share of
positions with the same most likely token, and KL(source || quantized). Both models are computed in
numpy from the weights as a reader of the folder restores them; nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna import models
from sterna.convert.calibrate import LINEAR, Parts, source_values, sources_of, with_experts
from sterna.convert.forward import Documents, FactorOf, all_logits
from sterna.convert.source import Source
from sterna.convert.tensors import Plan
from sterna.models.params import StoredWeight
from sterna.passes.quantize_activations import suits
from sterna.quantize.apply import PackedWeight
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, Scheme

Array = NDArray[Any]
Logits = NDArray[np.float32]

CHEAP_PARAMETERS = (
    50_000_000  # a model of more is measured only when asked for: minutes, not seconds
)


@dataclass(frozen=True, slots=True)
class Quality:
    """Over all positions of all documents; divergences in nats.

    `perplexity` is of the tokens that do come next, `source_perplexity` what the source gives them;
    None where every document is a single token.
    """

    positions: int
    top1: float
    mean_kl: float
    max_kl: float
    perplexity: float | None
    source_perplexity: float | None


def source_logits(source: Source, plan: Plan, documents: Documents) -> Logits:
    """Logits [positions, vocabulary] of the source's own weights."""
    tensors = sources_of(plan)
    model = models.build(source.effective, SCHEMES["q0f32"])
    values = with_experts(plan, lambda name, x: source_values(tensors[name]))
    return all_logits(model, documents, values)


def quantized_logits(
    source: Source,
    plan: Plan,
    documents: Documents,
    ready: Mapping[str, Parts],
    factor_of: FactorOf = lambda name, x: x,
) -> Logits:
    """The same of the weights that the folder will hold; `ready` parts are taken as they are."""
    tensors = sources_of(plan)
    schemes = {name: p.weight.scheme for p in plan.weights for name in p.weight.sources}

    def weight_of(name: str, x: Array | None) -> Array:
        scheme, tensor = schemes[name], tensors[name]
        if tensor.scheme is not None and tensor.scheme == scheme:
            return source_values(tensor)
        parts = ready.get(name) or quantize(source_values(tensor), scheme, name=name)
        return _restored(parts, scheme, tensor.shape)

    model = models.build(source.effective, SCHEMES["q0f32"])
    return all_logits(model, documents, with_experts(plan, weight_of), factor_of)


def in_8_bits(plan: Plan) -> FactorOf | None:
    """Activations as `compile --activations i8` rounds them; None where no weight suits that."""
    groups = {
        name: planned.weight.scheme.group
        for planned in plan.weights
        if planned.weight.kind in LINEAR and _suits_8_bits(planned.weight)
        for name in planned.weight.sources
    }

    def rounded(name: str, x: Array) -> Array:
        return x if name not in groups else rounded_to_8_bits(x, groups[name])

    return rounded if groups else None


def _suits_8_bits(weight: StoredWeight) -> bool:
    scheme = weight.scheme
    if not scheme.is_quantized or not scheme.is_plain_grid or scheme.compute.bits != 16:
        return False
    return suits(PackedWeight(weight.shape, weight.kind, scheme).grid, 8)


def rounded_to_8_bits(x: Array, group: int) -> Array:
    """What `dynamic_quantize` makes of x [n, K], as the product sees it: codes times scales."""
    groups = x.reshape(len(x), -1, group)
    peak = np.abs(groups).max(axis=-1, keepdims=True)
    code = np.floor(groups * np.divide(127, peak, out=np.zeros_like(peak), where=peak > 0) + 0.5)
    values: Array = (code * (peak / 127)).reshape(x.shape)
    return values


def _restored(parts: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> Array:
    if not scheme.is_quantized:
        values: Array = parts["weight"].astype(np.float32)
        return values
    scale = parts["q_scale"].astype(scheme.scale_on_disk.numpy).astype(scheme.scale_dtype.numpy)
    return dequantize({**parts, "q_scale": scale}, scheme, shape)


def compare(documents: Documents, wanted: Logits, found: Logits) -> Quality:
    """Quality of `found` against `wanted`, the logits of all positions of the documents."""
    p, q = _log_shares(wanted), _log_shares(found)
    divergence = (np.exp(p) * (p - q)).sum(axis=-1)
    same = wanted.argmax(axis=-1) == found.argmax(axis=-1)
    return Quality(
        len(same),
        float(same.mean()),
        float(divergence.mean()),
        float(divergence.max()),
        _perplexity(documents, q),
        _perplexity(documents, p),
    )


def _perplexity(documents: Documents, log_shares: NDArray[np.float64]) -> float | None:
    """Of every token but the first of each document, which nothing foretells."""
    tokens = np.concatenate([np.asarray(document) for document in documents])
    last = np.cumsum([len(document) for document in documents]) - 1
    at = np.setdiff1d(np.arange(len(tokens)), last)
    return float(np.exp(-log_shares[at, tokens[at + 1]].mean())) if len(at) else None


def _log_shares(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shares: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shares
