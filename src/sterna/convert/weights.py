"""`convert_weight`: quantize a checkpoint into a model folder, one stored weight at a time.

In: a Hugging Face folder or a GGUF file. Out: the weights' part of a converted model, swapped in
whole, and the receipt. Everything that can be known from headers is checked before the first byte
is written; the folder's other part, which `gen_config` writes, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from sterna.base.dtype import F32, DType
from sterna.base.errors import TokenizerError, UnsupportedModel
from sterna.checkpoint.folder import TOKENIZER_FILES
from sterna.checkpoint.mlc import CONFIG, MlcWriter
from sterna.checkpoint.model_folder import STERNA
from sterna.convert.calibrate import corrected, within_budget
from sterna.convert.measure import (
    CHEAP_PARAMETERS,
    Quality,
    compare,
    in_8_bits,
    quantized_logits,
    source_logits,
)
from sterna.convert.output import found_in, sterna_json
from sterna.convert.pack_rows import pack_rows
from sterna.convert.receipt import Receipt, WeightReceipt, make_receipt, receipt_json
from sterna.convert.sample_text import documents, prompts
from sterna.convert.source import Source, read_source
from sterna.convert.stored import Parts
from sterna.convert.tensors import Plan, Planned, plan
from sterna.models import family
from sterna.quantize.report import ErrorSum
from sterna.quantize.scheme import Scheme


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """Told after each stored weight; `bytes` count the source's."""

    name: str
    weights_done: int
    weights_total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What else a conversion may do.

    `calibrate` is a text file: weights are then chosen by the products they give on it, errors
    corrected. `budget_bits` chooses a scheme for each linear weight, so that they take that many
    bits on average. `lora` is an adapter's folder. `measure` says whether next tokens are compared
    with the source's; None does it for models small enough.
    """

    calibrate: Path | None = None
    calibration_tokens: int = 4096
    budget_bits: float | None = None
    lora: Path | None = None
    measure: bool | None = None


def convert_weight(
    source: Path,
    output: Path,
    *,
    quantization: str,
    model_type: str | None = None,
    options: ConvertOptions | None = None,
    progress: Callable[[ConvertProgress], None] | None = None,
) -> Receipt:
    """Quantize the weights of a source into `output`, or keep them as they are ("stored").

    `output` must be new, empty, or hold this very model, whose weights are then replaced at one
    stroke. Beside a stored weight, a few tens of megabytes are in memory; calibrating needs the
    quantized weights and the activations of its text as well. float32 tensors of quantized models
    are cut to bfloat16 on disk as MLC does; q0f32 and recipes are stored exactly.
    Raises UsageError for options and folders that make no sense, the leaves of CheckpointError for
    a checkpoint that is not what its config says, and CheckpointError when the disk refuses.
    """
    asked = options or ConvertOptions()
    model = read_source(Path(source), quantization, model_type, lora=asked.lora)
    todo = plan(model, model.tensors)
    output = Path(output).resolve()
    report = _Reporter(todo.weights, progress)
    if asked.budget_bits is not None:
        documents = _documents(model, todo, asked)
        bits = asked.budget_bits
        recipe = within_budget(model, todo, documents, bits, report.say)
        model = replace(model, quantization=recipe)
        todo = plan(model, model.tensors)
    found = found_in(output, model)
    ready: Mapping[str, Parts] = {}
    if asked.calibrate is not None:
        ready = corrected(model, todo, _documents(model, todo, asked), report.say)
    quality = _quality(model, todo, asked, ready)
    notes = (*todo.notes, *quality.notes, *_option_notes(asked))
    short = isinstance(model.quantization, Scheme) and model.quantization.is_quantized
    with MlcWriter(output, f32_as_bf16=short) as out:
        done: list[tuple[WeightReceipt, ErrorSum]] = []
        for planned in todo.weights:
            done.append(_convert(planned, out, short, ready))
            report.done(planned)
        receipt = make_receipt(
            model.model_type,
            model.quantization.name,
            done,
            notes,
            quality.found,
            quality.nearest,
            quality.coarse,
        )
        own = {
            "weights": {"shards": [asdict(shard) for shard in out.finish_shards()]},
            "receipt": receipt_json(receipt),
        }
        for name in (CONFIG, *TOKENIZER_FILES):
            if (output / name).is_file():
                out.add_file(name, output / name)
        out.add_file(STERNA, sterna_json(model, found, own))
        out.commit({"BitsPerParam": 8 * _memory_bytes(todo.weights) / receipt.total.parameters})
    return receipt


def _documents(model: Source, todo: Plan, asked: ConvertOptions) -> list[list[int]]:
    """The calibration text as token ids, or the prompts that come along."""
    rows = _vocabulary(todo)
    if asked.calibrate is None:
        return prompts(model.folder, rows)
    return documents(asked.calibrate, model.folder, rows, asked.calibration_tokens)


def _vocabulary(todo: Plan) -> int:
    """Rows of the embedding."""
    return max(p.weight.shape[0] for p in todo.weights if p.weight.kind == "embedding")


@dataclass(frozen=True, slots=True)
class _Measured:
    found: Quality | None = None
    nearest: Quality | None = None
    coarse: Quality | None = None
    notes: tuple[str, ...] = ()


def _quality(
    model: Source, todo: Plan, asked: ConvertOptions, ready: Mapping[str, Parts]
) -> _Measured:
    """Next tokens of both models on fixed prompts, or why they were not compared."""
    if asked.measure is False or _is_exact(todo):
        return _Measured()
    if family(model.effective).read_config(model.effective).pooling is not None:
        return _Measured(notes=("no next tokens to compare with the source's: the model embeds",))
    count = sum(prod(planned.weight.shape) for planned in todo.weights)
    if asked.measure is None and count > CHEAP_PARAMETERS:
        why = f"next tokens were not compared with the source's: the model has {count:,} parameters"
        return _Measured(notes=(f"{why}; convert with --measure to do it, in some minutes",))
    try:
        texts = prompts(model.folder, _vocabulary(todo))
        wanted = source_logits(model, todo, texts)
        found = compare(texts, wanted, quantized_logits(model, todo, texts, ready))
        nearest = coarse = None
        if ready:
            nearest = compare(texts, wanted, quantized_logits(model, todo, texts, {}))
        if (narrow := in_8_bits(todo)) is not None:
            logits = quantized_logits(model, todo, texts, ready, narrow)
            coarse = compare(texts, wanted, logits)
    except (TokenizerError, UnsupportedModel) as error:
        if asked.measure:
            raise
        return _Measured(notes=(f"next tokens were not compared with the source's: {error}",))
    return _Measured(found, nearest, coarse)


def _is_exact(todo: Plan) -> bool:
    """Whether every weight stays as it is, so that there is nothing to compare."""
    return all(
        tensor.own_scheme == planned.weight.scheme
        for planned in todo.weights
        for tensor in planned.tensors
    )


def _option_notes(asked: ConvertOptions) -> tuple[str, ...]:
    notes = []
    if asked.lora is not None:
        notes.append(f"the adapter {asked.lora.name} was merged into the weights")
    if asked.calibrate is not None:
        notes.append(f"errors were corrected on {asked.calibrate.name}")
    return tuple(notes)


def _convert(
    planned: Planned, out: MlcWriter, short: bool, ready: Mapping[str, Parts]
) -> tuple[WeightReceipt, ErrorSum]:
    weight = planned.weight
    short = short and weight.kind != "exact"
    parts, error = pack_rows(planned, f32_as_bf16=short, ready=ready)
    nbytes = 0
    for part, array in parts.items():
        out.add(weight.tensor_name(part), array, f32_as_bf16=short)
        nbytes += array.size * _bytes_on_disk(weight.parts[part][1], short)
    receipt = WeightReceipt(
        weight.name,
        weight.kind,
        weight.scheme.name,
        weight.sources,
        weight.shape,
        nbytes,
        error.result(),
    )
    return receipt, error


def _bytes_on_disk(dtype: DType, short: bool) -> int:
    return 2 if short and dtype == F32 else dtype.bytes


def _memory_bytes(weights: tuple[Planned, ...]) -> int:
    """As MLC counts: float32 that is short on disk is whole again in memory."""
    total = 0
    for planned in weights:
        for shape, dtype in planned.weight.parts.values():
            count = 1
            for size in shape:
                count *= size
            total += count * dtype.bytes
    return total


class _Reporter:
    """Tells how far a conversion is; computing calibration counts no bytes."""

    def __init__(
        self, weights: tuple[Planned, ...], told: Callable[[ConvertProgress], None] | None
    ) -> None:
        self._count = len(weights)
        self._bytes = sum(planned.source_bytes for planned in weights)
        self._told = told
        self._weights_done = 0
        self._bytes_done = 0

    def say(self, name: str) -> None:
        self._tell(name)

    def done(self, planned: Planned) -> None:
        self._weights_done += 1
        self._bytes_done += planned.source_bytes
        self._tell(planned.weight.name)

    def _tell(self, name: str) -> None:
        if self._told is not None:
            self._told(
                ConvertProgress(
                    name, self._weights_done, self._count, self._bytes_done, self._bytes
                )
            )
