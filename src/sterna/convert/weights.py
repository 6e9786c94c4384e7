"""`convert_weight`: quantize a checkpoint into a model folder, one stored weight at a time.

In: a Hugging Face folder or a GGUF file. Out: the weights' part of a converted model, swapped in
whole, and the receipt. Everything that can be known from headers is checked before the first byte
is written; the folder's other part, which `gen_config` writes, is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sterna.base.dtype import F32, DType
from sterna.checkpoint.folder import TOKENIZER_FILES
from sterna.checkpoint.mlc import CONFIG, MlcWriter
from sterna.checkpoint.model_folder import STERNA
from sterna.convert.output import found_in, sterna_json
from sterna.convert.pack_rows import pack_rows
from sterna.convert.receipt import Receipt, WeightReceipt, make_receipt, receipt_json
from sterna.convert.source import read_source
from sterna.convert.tensors import Planned, plan
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


def convert_weight(
    source: Path,
    output: Path,
    *,
    quantization: str,
    model_type: str | None = None,
    progress: Callable[[ConvertProgress], None] | None = None,
) -> Receipt:
    """Quantize the weights of a source into `output`, or keep them as they are ("stored").

    `output` must be new, empty, or hold this very model, whose weights are then replaced at one
    stroke. Beside a stored weight, a few tens of megabytes are in memory. float32 tensors of
    quantized models are cut to bfloat16 on disk as MLC does; q0f32 is stored exactly.
    Raises UsageError for options and folders that make no sense, the leaves of CheckpointError for
    a checkpoint that is not what its config says, and CheckpointError when the disk refuses.
    """
    model = read_source(Path(source), quantization, model_type)
    todo = plan(model, model.tensors)
    output = Path(output).resolve()
    found = found_in(output, model)
    short = isinstance(model.quantization, Scheme) and model.quantization.is_quantized
    with MlcWriter(output, f32_as_bf16=short) as out:
        done: list[tuple[WeightReceipt, ErrorSum]] = []
        report = _reporter(todo.weights, progress)
        for planned in todo.weights:
            done.append(_convert(planned, out, short))
            report(planned)
        receipt = make_receipt(model.model_type, model.quantization.name, done, todo.notes)
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


def _convert(planned: Planned, out: MlcWriter, short: bool) -> tuple[WeightReceipt, ErrorSum]:
    weight = planned.weight
    parts, error = pack_rows(planned, f32_as_bf16=short)
    nbytes = 0
    for part, array in parts.items():
        out.add(weight.tensor_name(part), array)
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


def _reporter(
    weights: tuple[Planned, ...], progress: Callable[[ConvertProgress], None] | None
) -> Callable[[Planned], None]:
    total = sum(planned.source_bytes for planned in weights)
    done = [0, 0]

    def report(planned: Planned) -> None:
        done[0] += 1
        done[1] += planned.source_bytes
        if progress is not None:
            step = ConvertProgress(planned.weight.name, done[0], len(weights), done[1], total)
            progress(step)

    return report
