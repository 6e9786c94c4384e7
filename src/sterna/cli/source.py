"""The flags that `convert_weight` and `gen_config` share, and `compile`'s way to name a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from sterna.base.errors import UsageError

CONFIG = "mlc-chat-config.json"


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """SOURCE or --source, --model-type, --quantization, --output."""
    parser.add_argument("model", metavar="SOURCE", nargs="?", help="the same as --source")
    parser.add_argument("--source", help="a Hugging Face folder, a GGUF file or HF://user/repo")
    parser.add_argument("--model-type", help="the model's family (default: what config.json says)")
    parser.add_argument(
        "--quantization",
        metavar="SCHEME",
        help="or 'stored' to keep weights as they are; default: chosen for the model",
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the model folder to write")


def source_of(args: argparse.Namespace) -> str:
    """What is to be read: --source, or the bare word."""
    return one_of(args.model, args.source, "--source")


def one_of(bare: str | None, flagged: str | None, flag: str) -> str:
    """A value that may come with its flag or without, but must come."""
    if bare is not None and flagged is not None and bare != flagged:
        raise UsageError(f"{flag} is {flagged}, but {bare} is given as well; leave one of them out")
    value = flagged if flagged is not None else bare
    if not value:
        raise UsageError(f"{flag} is missing: give a model folder or HF://user/repo")
    return value


def output_of(args: argparse.Namespace) -> Path:
    if not args.output:
        raise UsageError("--output is missing: say where to write the result")
    return Path(args.output).expanduser()


def quantization_of(args: argparse.Namespace, source: Path, output: Path) -> str:
    """--quantization, else what the output folder holds already, else what suits the model."""
    if args.quantization:
        return str(args.quantization)
    from sterna.checkpoint.model_folder import read_sterna
    from sterna.convert import STORED, default_quantization

    found = read_sterna(output)
    if "recipe" in found:
        return STORED
    named = found.get("quantization")
    return named if isinstance(named, str) else default_quantization(source)
