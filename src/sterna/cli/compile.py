"""`sterna compile`: a model folder becomes a library for one target."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.errors import TokenizerError, UsageError
from sterna.base.target import EXAMPLES, Target, parse_target
from sterna.cli.arguments import Subparsers, add_verb, closest
from sterna.cli.progress import shown
from sterna.cli.say import note, size
from sterna.cli.source import CONFIG, one_of, output_of

if TYPE_CHECKING:
    from sterna.base.artifact import AdapterRoom
    from sterna.base.web import WebIndex
    from sterna.jit import Report
    from sterna.schedule.choose import Plan

OVERRIDES = (
    "context_window_size",
    "prefill_chunk_size",
    "max_batch_size",
    "sliding_window_size",
    "attention_sink_size",
)
COARSER = ("i8", "bf16")  # activations whose effect on next tokens is told
_EXAMPLE = """\
  sterna compile --model ./dist/M --target cpu --output ./dist/libs/M-cpu.so
  sterna compile --model ./dist/M --target cpu:aarch64-macos --output ./dist/libs/M-mac.dylib
  sterna compile --model ./dist/M --target cpu --output ./M.so --debug-dump ./dump \\
      --overrides "context_window_size=4096;prefill_chunk_size=512"
  sterna compile --model ./dist/M --target webgpu --output ./dist/M-webgpu/"""


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "compile",
        "compile a model folder into a library",
        "Compile a converted model for a target, this machine or another. Weights are not needed, "
        "only the folder's configuration.",
        _EXAMPLE,
    )
    parser.add_argument("bare", metavar="MODEL", nargs="?", help="the same as --model")
    parser.add_argument("--model", help="a model folder, or its mlc-chat-config.json")
    parser.add_argument(
        "--quantization", metavar="SCHEME", help="checked against the folder's (default: that)"
    )
    parser.add_argument(
        "--target", default="cpu", help=f"one of {', '.join(EXAMPLES)}, ... (default: cpu)"
    )
    add_settings(parser)
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        help=f"with --activations {' or '.join(COARSER)} for this CPU: compare next tokens with "
        "the usual activations' (default: if the model is small)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="LIB",
        help="the library to write; or DIR/, a folder that browsers fetch",
    )
    parser.add_argument(
        "--lora",
        metavar="PATH",
        action="append",
        default=[],
        help="make room for an adapter such as this PEFT LoRA; as often as adapters are served",
    )
    parser.add_argument(
        "--debug-dump", metavar="DIR", help="write every phase as text, schedules and C sources"
    )
    parser.add_argument(
        "--no-tuned", action="store_true", help="leave out plans that `sterna tune` has measured"
    )
    parser.set_defaults(run=run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What shapes a model's kernels: the same flags wherever kernels are made."""
    parser.add_argument(
        "--activations",
        choices=("i16", "i8", "f16", "bf16", "f32"),
        help="what weights are multiplied with: 16-bit codes, exact within a group of packed "
        "weights; 8-bit codes, faster and coarser; 16-bit floats, for GPUs with a matrix unit and "
        "CPUs with AVX-512 BF16; or f32 (default: i16 on CPUs for schemes that compute in 16 "
        "bits, and f32)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("f16", "q8"),
        help="what the KV cache keeps: 16 bits, or 8 and a scale for each token and head "
        "(default: what the quantization computes in)",
    )
    parser.add_argument(
        "--overrides",
        metavar="K=V;K=V",
        default="",
        help=f"instead of the folder's configuration: {', '.join(OVERRIDES)}",
    )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of them, as CompileOptions take it; UsageError for overrides that are none."""
    given = {"kv_dtype": args.kv_dtype, "activations": args.activations}
    return parse_overrides(args.overrides) | given


def run(args: argparse.Namespace) -> int:
    folder = model_folder(one_of(args.bare, args.model, "--model"))
    output, target = output_of(args), parse_target(args.target)
    whole = args.output.endswith(("/", "\\")) or output.is_dir()
    settings: dict[str, Any] = {**settings_of(args), "adapters": _room(args.lora)}
    from sterna.base.artifact import CompileOptions
    from sterna.checkpoint.model_folder import open_model
    from sterna.compiler import compile_model
    from sterna.web_folder import compile_folder

    found = open_model(folder, weights=False).quantization
    if args.quantization not in (None, found):
        raise UsageError(
            f"--quantization is {args.quantization}, but {folder} is quantized as {found}; "
            "leave the flag out, or convert the model again"
        )
    measured = args.measure is not False and not whole and args.activations in COARSER
    if args.measure:
        _check_measurable(measured, target)
    dump = Path(args.debug_dump).expanduser() if args.debug_dump else None
    with shown() as report:
        tuned = None if args.no_tuned else _tuned(target, report)
        common: dict[str, Any] = {
            "options": CompileOptions(**settings),
            "debug_dump": dump,
            "tuned": tuned,
            "progress": lambda text: report("compile", text, 0, 0),
        }
        if whole:
            index = compile_folder(folder, target, output, **common)
            told = f"{size(sum(f.size for f in index.files))}, {_programs(index)}"
        else:
            library = compile_model(folder, target, output, **common)
            told = f"{size(library.stat().st_size)}, {target.spec}"
    if dump is not None:
        note(f"every phase is in {dump}")
    if measured:
        note(_effect(folder, target, output, settings, asked=args.measure is True))
    print(f"{output} ({told})")
    return 0


def _programs(index: WebIndex) -> str:
    return "programs " + ", ".join(program.target for program in index.programs)


def _check_measurable(coarse: bool, target: Target) -> None:
    from sterna.cli.compile_effect import not_run_here

    if not coarse:
        raise UsageError(
            "--measure compares coarser activations with the usual ones: it goes with "
            f"--activations {' or '.join(COARSER)} and a library"
        )
    if why := not_run_here(target):
        raise UsageError(f"--measure was asked for, but {why}")


def _effect(
    folder: Path, target: Target, library: Path, settings: dict[str, Any], *, asked: bool
) -> str:
    """What coarser activations cost in quality, or why that is not told."""
    from sterna.cli.compile_effect import effect, unmeasurable

    kind = settings["activations"]
    why = unmeasurable(target, library, asked=asked)
    try:
        if why is None:
            return f"activations {kind}: {effect(folder, target, library, settings)}"
    except TokenizerError as error:
        why = str(error)
    return f"what activations {kind} cost in quality was not measured: {why}"


def _room(adapters: Sequence[str]) -> AdapterRoom | None:
    from sterna.checkpoint.hub import resolve_adapter
    from sterna.checkpoint.lora import open_adapter, room_for

    return room_for([open_adapter(resolve_adapter(adapter)) for adapter in adapters])


def _tuned(target: Target, report: Report) -> Mapping[str, Plan]:
    from sterna.tune.database import tuned_plans

    return tuned_plans(target, lambda text: report("compile", text, 0, 0))


def model_folder(named: str) -> Path:
    """The folder that the user named, itself or through its configuration file."""
    path = Path(named).expanduser()
    folder = path.parent if path.name == CONFIG else path
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give a converted model's folder")
    if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is a Hugging Face folder, not a converted model; use `sterna "
            "convert_weight` and `sterna gen_config` first, or `sterna chat`, which does all steps"
        )
    return folder


def parse_overrides(text: str) -> dict[str, int]:
    """Read "k=v;k=v"; UsageError for a name or a value that is none."""
    overrides: dict[str, int] = {}
    for pair in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--overrides has {pair!r}, possible is name=number;name=number")
        if name not in OVERRIDES:
            raise UsageError(f"--overrides has no {name!r}; {closest(name, OVERRIDES)}")
        try:
            overrides[name] = int(value)
        except ValueError:
            raise UsageError(f"--overrides: {name} is {value!r}, not an integer") from None
    return overrides
