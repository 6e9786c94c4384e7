"""`sterna convert_weight`: a checkpoint becomes the quantized weights of a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.cli.arguments import Subparsers, add_verb
from sterna.cli.progress import shown
from sterna.cli.say import harmless, note
from sterna.cli.source import add_source_flags, output_of, quantization_of, source_of

if TYPE_CHECKING:
    from sterna.convert import ConvertProgress


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "convert_weight",
        "quantize a model's weights into a model folder",
        "Read a Hugging Face folder tensor by tensor, quantize it, and write a model folder with "
        "a receipt of what each tensor lost. `convert-weight` is the same command.",
        "  sterna convert_weight --source ./M-hf --quantization q4f16_1 --output ./dist/M",
    )
    add_source_flags(parser)
    parser.add_argument(
        "--calibrate", metavar="TEXT", help="choose weights by what they compute on this text file"
    )
    parser.add_argument(
        "--budget-bits",
        metavar="BITS",
        type=float,
        help="mix schemes so that linear weights take this many bits on average, such as 4.25",
    )
    parser.add_argument(
        "--lora", metavar="ADAPTER", help="merge this PEFT LoRA adapter, a folder or HF://user/repo"
    )
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        help="compare next tokens with the source's (default: if the model is small)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    named, output = source_of(args), output_of(args)
    from sterna.checkpoint.hub import resolve, resolve_adapter
    from sterna.convert import ConvertOptions, convert_weight, format_receipt

    source = resolve(named)
    quantization = quantization_of(args, source, output)
    with shown() as report:

        def step(at: ConvertProgress) -> None:
            report("convert", at.name, at.bytes_done, at.bytes_total)

        report("convert", f"{source} to {quantization}", 0, 0)
        receipt = convert_weight(
            source,
            output,
            quantization=quantization,
            model_type=args.model_type,
            options=ConvertOptions(
                calibrate=Path(args.calibrate).expanduser() if args.calibrate else None,
                budget_bits=args.budget_bits,
                lora=resolve_adapter(args.lora) if args.lora else None,
                measure=args.measure,
            ),
            progress=step,
        )
    print(harmless(format_receipt(receipt)))
    note(f"weights are in {output}; `sterna gen_config` writes the rest of the folder")
    return 0
