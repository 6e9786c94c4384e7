"""The report on a model folder: what it is, how large its weights are, and what they lost.

In: a folder that Sterna or MLC wrote. Out: its Report. The error of every weight against its
source comes from the conversion receipt in `sterna.json`; MLC's folders have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path

import msgspec

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.checkpoint.model_folder import STERNA, ModelFolder, open_model, read_sterna
from sterna.inspection.charts import weight_bars
from sterna.inspection.document import Chart, Line, Part, Report, Section, Table, one_line, size
from sterna.inspection.weights import (
    GROUPS,
    StoredTensor,
    Weight,
    by_group,
    by_scheme,
    compression,
    group_of,
    split,
    weights_of,
)
from sterna.models.params import StoredWeight, stored_weights
from sterna.quantize.recipe import Quantization, read_recipe
from sterna.quantize.scheme import scheme

_FACTS = (
    ("num_hidden_layers", "layers"),
    ("hidden_size", "hidden size"),
    ("intermediate_size", "MLP size"),
    ("num_attention_heads", "attention heads"),
    ("num_key_value_heads", "key/value heads"),
    ("vocab_size", "vocabulary"),
    ("max_position_embeddings", "trained window"),
)
_WORST = 10


class WeightError(msgspec.Struct, frozen=True):
    """A weight's error in the receipt; what else is there is passed over."""

    max_abs: float
    rms: float
    relative_rms: float


class ReceiptWeight(msgspec.Struct, frozen=True):
    scheme: str
    shape: tuple[int, ...]
    error: WeightError


class ReceiptQuality(msgspec.Struct, frozen=True):
    """Next tokens against the source's, in nats."""

    positions: int
    top1: float
    mean_kl: float
    max_kl: float
    perplexity: float | None = None
    source_perplexity: float | None = None


class ReceiptPart(msgspec.Struct, frozen=True):
    """`nearest` is what rounding alone would have given, where a calibration did better;

    `coarse` what activations of 8 bits give.
    """

    weights: dict[str, ReceiptWeight]
    notes: tuple[str, ...] = ()
    quality: ReceiptQuality | None = None
    nearest: ReceiptQuality | None = None
    coarse: ReceiptQuality | None = None


def folder_report(path: Path, *, charts: bool) -> Report:
    """Report on a converted model; raises the leaves of CheckpointError, as `open_model` does."""
    model = open_model(path)
    receipt = _receipt(path)
    tensors = (
        StoredTensor(ref.name, ref.dtype, ref.shape, ref.nbytes) for ref in model.tensors.values()
    )
    stored = _stored(model)
    shapes = {weight.name: weight.shape for weight in stored}
    schemes = {weight.name: weight.scheme for weight in stored} if model.recipe else {}
    weights = weights_of(tensors, model.quantization, shapes, schemes)
    parts: list[Part] = [by_scheme(weights), by_group(weights)]
    if charts:
        parts.append(Chart(weight_bars(weights), "Bytes of each group, over its bytes in fp16"))
    sections = [Section("Model", (_facts(model, weights),)), Section("Weights", tuple(parts))]
    if receipt is not None:
        sections += _receipt_sections(receipt, charts)
    if charts:
        sections.append(Section(f"All {len(weights)} weights", (_all(weights),), long=True))
    return Report(one_line(f"{path}: a {model.model_type} model in {model.quantization}"),
                  tuple(sections))  # fmt: skip


def _facts(model: ModelFolder, weights: list[Weight]) -> Table:
    rows = [("model type", model.model_type), ("quantization", model.quantization)]
    for key, label in _FACTS:
        value = model.config.get(key)
        if isinstance(value, int):
            rows.append((label, f"{value:,}"))
    rows += [
        ("parameters", f"{sum(weight.parameters for weight in weights):,}"),
        ("stored in", size(sum(weight.bytes for weight in weights))),
        ("fp16 would take", size(sum(weight.fp16_bytes for weight in weights))),
        ("compression", compression(weights)),
        ("fingerprint", model.fingerprint[:16]),
    ]
    return Table(("", ""), tuple((label, one_line(value)) for label, value in rows), left=2)


def _stored(model: ModelFolder) -> list[StoredWeight]:
    """What the folder should hold, where the family is one that Sterna builds."""
    if model.recipe is None:
        wanted: Quantization = scheme(model.quantization)
    else:
        wanted = read_recipe(model.quantization, model.recipe, str(model.folder / STERNA))
    try:
        return stored_weights(model.config, wanted)
    except UnsupportedModel:
        return []


def _receipt(path: Path) -> ReceiptPart | None:
    found = read_sterna(path).get("receipt")
    if found is None:
        return None
    try:
        return msgspec.convert(found, ReceiptPart)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"the receipt in {path / STERNA} is malformed ({error}); convert the model again"
        ) from None


def _receipt_sections(receipt: ReceiptPart, charts: bool) -> list[Section]:
    weights = receipt.weights
    notes = tuple(Line(f"Note: {one_line(note)}.") for note in receipt.notes)
    worst = sorted(weights, key=lambda name: -weights[name].error.relative_rms)
    lossy = [name for name in worst if weights[name].error.relative_rms]
    if not lossy:
        exact = Line("Every weight is stored exactly as its source has it.")
        return [Section("Error against the source", (exact, *notes))]
    parts: tuple[Part, ...] = (_group_errors(weights), *_next_tokens(receipt), *notes)
    shown = lossy if charts else lossy[:_WORST]
    heading = f"Largest errors ({len(shown)} of {len(weights)} weights)"
    return [
        Section("Error against the source", parts),
        Section(heading, (_error_table(weights, shown),), long=charts),
    ]


def _next_tokens(receipt: ReceiptPart) -> tuple[Line, ...]:
    found = (
        ("Next tokens", receipt.quality),
        ("Only rounded", receipt.nearest),
        ("Activations i8", receipt.coarse),
    )
    return tuple(
        Line(
            f"{label}: {q.top1:.1%} the source's at {q.positions} positions, KL divergence "
            f"{q.mean_kl:.2e} on average, {q.max_kl:.2e} at most{_perplexity(q)}."
        )
        for label, q in found
        if q is not None
    )


def _perplexity(quality: ReceiptQuality) -> str:
    if quality.perplexity is None or quality.source_perplexity is None:
        return ""  # a receipt of earlier versions
    return f"; perplexity {quality.perplexity:.4g}, the source's {quality.source_perplexity:.4g}"


def _count(weight: ReceiptWeight) -> int:
    return prod(weight.shape)


def _group_errors(weights: Mapping[str, ReceiptWeight]) -> Table:
    plain = [Weight(n, group_of(n), w.scheme, _count(w), 0) for n, w in weights.items()]
    plain.sort(key=lambda weight: GROUPS.index(weight.group))
    rows = []
    for group, some in split(plain, lambda weight: weight.group).items():
        rows.append((group, *_error_row([weights[weight.name] for weight in some])))
    total = ("total", *_error_row(list(weights.values())))
    head = ("group", "weights", "max error", "rms error", "relative rms")
    return Table(head, (*rows, total), summed=True)


def _error_row(some: list[ReceiptWeight]) -> tuple[str, ...]:
    """Squares add up: the signal's follow from rms and relative rms of each weight."""
    lossy = [w for w in some if w.error.relative_rms > 0]
    squares = sum(w.error.rms**2 * _count(w) for w in lossy)
    signal = sum((w.error.rms / w.error.relative_rms) ** 2 * _count(w) for w in lossy)
    if not squares:
        return (str(len(some)), "exact", "", "")
    rms = sqrt(squares / sum(_count(w) for w in some))
    largest = max(w.error.max_abs for w in some)
    return (str(len(some)), f"{largest:.2e}", f"{rms:.2e}", f"{sqrt(squares / signal):.2%}")


def _error_table(weights: Mapping[str, ReceiptWeight], names: list[str]) -> Table:
    rows = []
    for name in names:
        found = weights[name]
        error = found.error
        rows.append((one_line(name), one_line(found.scheme), f"{error.max_abs:.2e}",
                     f"{error.rms:.2e}", f"{error.relative_rms:.2%}"))  # fmt: skip
    head = ("weight", "scheme", "max error", "rms error", "relative rms")
    return Table(head, tuple(rows), left=2)


def _all(weights: list[Weight]) -> Table:
    rows = [
        (one_line(w.name), w.group, w.scheme, f"{w.parameters:,}", size(w.bytes), compression([w]))
        for w in weights
    ]
    head = ("weight", "group", "scheme", "parameters", "bytes", "compression")
    return Table(head, tuple(rows), left=3)
