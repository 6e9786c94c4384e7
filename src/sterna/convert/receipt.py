"""The conversion receipt: what every stored weight came from, and what quantizing it cost.

In: one WeightReceipt a weight, as conversion goes. Out: Receipt, its JSON for `sterna.json`, and
its text for people. Numbers only; nothing here judges whether an error is acceptable.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from sterna.convert.measure import Quality
from sterna.quantize.report import ErrorSum, TensorError

_HEAD = ("kind", "weights", "parameters", "bytes", "bits/weight", "max error", "rel. rms", "SQNR")


@dataclass(frozen=True, slots=True)
class WeightReceipt:
    """One stored weight. `bytes` are those in the folder; `error` is against the source."""

    name: str
    kind: str
    scheme: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: int
    error: TensorError

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class KindTotal:
    """All weights of one kind."""

    kind: str
    weights: int
    parameters: int
    bytes: int
    error: TensorError

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """A whole conversion. `notes` say what of the checkpoint was passed over knowingly.

    `quality` compares next tokens with the source's, where they were measured; `nearest` is what
    rounding to nearest alone would have given, where a calibration did better; `coarse` is what a
    library gives that is compiled with activations of 8 bits, where the weights suit that.
    """

    model_type: str
    quantization: str
    weights: tuple[WeightReceipt, ...]
    kinds: tuple[KindTotal, ...]
    total: KindTotal
    notes: tuple[str, ...]
    quality: Quality | None = None
    nearest: Quality | None = None
    coarse: Quality | None = None

    @property
    def bits_per_weight(self) -> float:
        """Measured: bytes in the folder over parameters of the source."""
        return self.total.bits_per_weight


def make_receipt(
    model_type: str,
    quantization: str,
    weights: list[tuple[WeightReceipt, ErrorSum]],
    notes: tuple[str, ...],
    quality: Quality | None = None,
    nearest: Quality | None = None,
    coarse: Quality | None = None,
) -> Receipt:
    """Sum up by kind, in order of first appearance."""
    kinds = dict.fromkeys(weight.kind for weight, _ in weights)
    return Receipt(
        model_type,
        quantization,
        tuple(weight for weight, _ in weights),
        tuple(_total(kind, [pair for pair in weights if pair[0].kind == kind]) for kind in kinds),
        _total("total", weights),
        notes,
        quality,
        nearest,
        coarse,
    )


def _total(kind: str, weights: list[tuple[WeightReceipt, ErrorSum]]) -> KindTotal:
    error = ErrorSum()
    for _, one in weights:
        error.merge(one)
    return KindTotal(
        kind,
        len(weights),
        sum(weight.parameters for weight, _ in weights),
        sum(weight.bytes for weight, _ in weights),
        error.result(),
    )


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """The receipt as `sterna.json` holds it."""
    return {
        "bits_per_weight": receipt.bits_per_weight,
        "total": _total_json(receipt.total),
        "kinds": {total.kind: _total_json(total) for total in receipt.kinds},
        "notes": list(receipt.notes),
        **{
            key: asdict(found)
            for key, found in (
                ("quality", receipt.quality),
                ("nearest", receipt.nearest),
                ("coarse", receipt.coarse),
            )
            if found is not None
        },
        "weights": {
            weight.name: {key: value for key, value in asdict(weight).items() if key != "name"}
            for weight in receipt.weights
        },
    }


def _total_json(total: KindTotal) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(total).items() if key != "kind"}
    return {**fields, "bits_per_weight": total.bits_per_weight}


def format_receipt(receipt: Receipt) -> str:
    """A table by kind of layer, and the weight that lost most."""
    rows = [_HEAD, *(_row(total) for total in (*receipt.kinds, receipt.total))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [f"{receipt.model_type} in {receipt.quantization}: error against the source"]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    worst = max(receipt.weights, key=lambda weight: weight.error.relative_rms, default=None)
    if worst is not None and worst.error.relative_rms:
        lines.append(f"largest relative error: {worst.name}, {worst.error.relative_rms:.2%}")
    for label, quality in (
        ("next tokens", receipt.quality),
        ("rounded only", receipt.nearest),
        ("activations i8", receipt.coarse),
    ):
        if quality is not None:
            lines.append(_quality_line(label, quality))
    lines += [f"note: {note}" for note in receipt.notes]
    return "\n".join(lines)


def _quality_line(label: str, quality: Quality) -> str:
    told = (
        f"{label}: {quality.top1:.1%} the same as the source's at {quality.positions} positions, "
        f"KL divergence {quality.mean_kl:.2e} on average, {quality.max_kl:.2e} at most"
    )
    if quality.perplexity is None or quality.source_perplexity is None:
        return told
    return (
        f"{told}; perplexity {quality.perplexity:.4g}, the source's {quality.source_perplexity:.4g}"
    )


def _row(total: KindTotal) -> tuple[str, ...]:
    error = total.error
    exact = error.sqnr_db is None
    return (
        total.kind,
        str(total.weights),
        f"{total.parameters:,}",
        f"{total.bytes:,}",
        f"{total.bits_per_weight:.3f}",
        "exact" if exact else f"{error.max_abs:.2e}",
        "" if exact else f"{error.relative_rms:.2%}",
        "" if error.sqnr_db is None else f"{error.sqnr_db:.1f} dB",
    )
