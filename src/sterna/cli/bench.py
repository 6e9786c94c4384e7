"""`sterna bench`: how fast a model runs here, or how a server holds up under load."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError
from sterna.cli.arguments import Subparsers, add_verb, given_options, number
from sterna.cli.model import ENGINE, add_engine_flags, find_models, open_engine
from sterna.cli.say import harmless, note
from sterna.engine.options import EngineOptions, Mode, Speculative

if TYPE_CHECKING:
    from sterna.base.artifact import Manifest
    from sterna.base.target import Target
    from sterna.checkpoint.model_folder import ModelFolder
    from sterna.cli.bench_report import BenchReport, Change, PhaseReport
    from sterna.compiler import Source
    from sterna.engine.limits import Limits

_EXAMPLE = """\
  sterna bench                                          the demo model
  sterna bench ./dist/M --prompt-tokens 128,512 --parallel 1,8
  sterna bench http://localhost:8000 --concurrency 32 --requests 256
  sterna bench ./dist/M --json now.json --baseline before.json"""
_OF_MODELS = ("parallel", "repetitions", "no_kernels")
_OF_SERVERS = (
    "requests",
    "concurrency",
    "rate",
    "api_key",
    "served_model",
    "ignore_eos",
    "seed",
    "timeout",
)
# Prompts shall be computed, the memory that the library allows is there to be used, and nothing
# else takes time.
_CHOSEN = ("mode", "prefix_cache", "prefix_cache_dir", "trace")
_ENGINE = tuple(name for name in ENGINE if name not in _CHOSEN)
_TOLERANCE = 0.1
_PROGRAM = ("model", "kv_cache", "states", "params", "entries", "kernels")  # of a manifest


def add(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs,
        "bench",
        "measure a model or a server",
        "Measure how fast a model reads prompts (pp) and writes answers (tg) on this machine, or "
        "how an OpenAI-compatible server answers under load.",
        _EXAMPLE,
    )
    parser.add_argument(
        "model",
        metavar="MODEL|URL",
        nargs="?",
        help="a model folder, HF://user/repo or http://server (default: the demo model)",
    )
    _add_sizes(parser)
    _add_load(parser)
    _add_results(parser)
    add_engine_flags(parser, _ENGINE)
    parser.set_defaults(run=run, **dict.fromkeys(_CHOSEN))


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-tokens",
        metavar="N,N",
        type=_counts,
        help="tokens of a prompt (default: 512; of a server: 64 words)",
    )
    parser.add_argument(
        "--generate-tokens",
        metavar="N,N",
        type=_counts,
        help="tokens of an answer (default: 128; of a server: 64 at most)",
    )
    parser.add_argument(
        "--parallel", metavar="N,N", type=_counts, help="of a model: answers at once (default: 1)"
    )
    parser.add_argument(
        "--repetitions", metavar="N", type=number(int), help="of a model: samples (default: 5)"
    )
    parser.add_argument(
        "--no-kernels",
        action="store_const",
        const=True,
        help="of a model on the CPU: leave out the time in each kernel, for which a library is "
        "built",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load on a server")
    group.add_argument("--requests", metavar="N", type=number(int), help="in all (default: 64)")
    group.add_argument(
        "--concurrency", metavar="N", type=number(int), help="most at once (default: 8)"
    )
    group.add_argument(
        "--rate",
        metavar="X",
        type=number(float),
        help="a second, at random moments (default: the next as soon as one is done)",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="default: the environment's OPENAI_API_KEY, if any"
    )
    group.add_argument("--served-model", metavar="NAME", help="default: the first that is served")
    group.add_argument(
        "--ignore-eos",
        action="store_const",
        const=True,
        help="send ignore_eos, so that every answer has all its tokens (Sterna and vLLM know it)",
    )
    group.add_argument("--seed", metavar="N", type=number(int), help="of prompts and moments")
    group.add_argument(
        "--timeout", metavar="S", type=number(float), help="of one request (default: 600)"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--json", metavar="FILE", help="write everything to a file (-: stdout)")
    group.add_argument("--html", metavar="FILE", help="write a page with plots")
    group.add_argument(
        "--baseline",
        metavar="FILE",
        help="an earlier --json; exit status 1 if anything got worse by more than --tolerance",
    )
    group.add_argument(
        "--tolerance", metavar="X", type=number(float), help="default: 0.1, which is 10 %%"
    )


def run(args: argparse.Namespace) -> int:
    tolerance = _TOLERANCE if args.tolerance is None else args.tolerance
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance is {tolerance}, possible is a number of at least 0")
    from sterna.cli import bench_report

    before = None if args.baseline is None else bench_report.read(Path(args.baseline))
    is_server = (args.model or "").startswith(("http://", "https://"))
    report, failures = _of_server(args) if is_server else (_of_model(args), {})
    changes = () if before is None else bench_report.compare(report, before)
    _write(args, report, changes, tolerance, failures)
    worse = [change.metric.name for change in changes if not change.share <= tolerance]
    if worse:
        note(f"sterna: worse than the baseline by more than {tolerance:.0%}: {', '.join(worse)}")
    if failures:
        note(f"sterna: {sum(failures.values())} requests failed: {next(iter(failures))}")
    return 1 if worse or failures else 0


def _write(
    args: argparse.Namespace,
    report: BenchReport,
    changes: Iterable[Change],
    tolerance: float,
    failures: Mapping[str, int],
) -> None:
    from sterna.cli.bench_document import document
    from sterna.cli.bench_report import to_json
    from sterna.inspection.page import to_page
    from sterna.inspection.text import to_text

    shown = document(report, tuple(changes), tolerance, failures)
    if args.json == "-":
        sys.stdout.write(to_json(report).decode())
    else:
        print(harmless(to_text(shown)))
        if args.json is not None:
            write_atomic(Path(args.json), to_json(report))
    if args.html is not None:
        write_atomic(Path(args.html), to_page(shown).encode())


def _of_model(args: argparse.Namespace) -> BenchReport:
    _refuse(args, _OF_SERVERS, "is about a server; give its http:// address instead of a model")
    from sterna.cli.bench_rates import RateOptions, phases, rates
    from sterna.cli.bench_report import BenchReport
    from sterna.inspection.peaks import measure_peaks

    options = RateOptions(
        **_given(
            prompts=args.prompt_tokens,
            answers=args.generate_tokens,
            parallel=args.parallel,
            repetitions=_at_least_one(args.repetitions, "--repetitions"),
        )
    )
    args.mode, args.prefix_cache = Mode.SERVER, False
    peaks = measure_peaks()
    with open_engine(args) as engine:
        found = rates(engine, options, lambda test: note(f"measuring {test}"))
        # A guess that comes true makes a step worth several tokens: what it costs is unknown then.
        guesses = args.speculative not in (None, Speculative.OFF)
        manifest, limits = engine.manifest, engine.limits
        told = () if guesses else phases(manifest, limits, found, peaks)
        settings = {
            "target": engine.manifest.target,
            "quantization": engine.manifest.model.quantization,
            **{f.name: getattr(options, f.name) for f in fields(options)},
            **given_options(args, _ENGINE),
            "threads": _threads(args),
        }
        subject = engine.model_name
    if told and not args.no_kernels:  # the engine has given its memory back
        told = _with_kernels(args, manifest, limits, told)
    return BenchReport(
        kind="rates",
        subject=subject,
        settings={name: _plain(value) for name, value in settings.items()},
        metrics=found,
        phases=told,
    )


def _with_kernels(
    args: argparse.Namespace, manifest: Manifest, limits: Limits, told: tuple[PhaseReport, ...]
) -> tuple[PhaseReport, ...]:
    """The phases with the times of their kernels; as they are where those cannot be had."""
    from sterna.base.target import KINDS, parse_target
    from sterna.checkpoint.model_folder import open_model
    from sterna.cli.bench_rates import phase_steps, with_kernels
    from sterna.engine.loader import packed_file
    from sterna.inspection.kernel_times import kernel_times

    target = parse_target(manifest.target)
    if target.group_threads or not hasattr(time, "clock_gettime"):
        note(f"the time in each kernel is not told: it is for {KINDS[0]}, on Linux and macOS")
        return told
    options = EngineOptions(**given_options(args, _ENGINE))
    (located,), _ = find_models(args, [args.model], options)
    folder = open_model(located.folder, weights=False)
    source = _source_of(folder, target, manifest)
    if source is None:
        note(
            "the time in each kernel is not told: the library was made by another Sterna, of "
            "another configuration, or by tuned plans that are not here"
        )
        return told
    note("measuring kernels")
    steps = [phase_steps(manifest, limits, phase.name) for phase in told]
    times = iter(
        kernel_times(
            source,
            target,
            located.weights,
            [(step.context, step.tokens, step.sequences) for each in steps for step in each],
            threads=_threads(args),
            packed=packed_file(located, manifest, options),
        )
    )
    return tuple(
        with_kernels(phase, manifest, each, [next(times) for _ in each])
        for phase, each in zip(told, steps, strict=True)
    )


def _source_of(folder: ModelFolder, target: Target, manifest: Manifest) -> Source | None:
    """What the library is made of, by its own options and the plans that are here."""
    from sterna.compiler import compile_source
    from sterna.tune.database import tuned_plans

    here = tuned_plans(target, lambda text: None)
    for plans in (here, None) if here else (None,):
        try:
            source = compile_source(folder, target, manifest.options, tuned=plans)
        except UsageError:  # mlc-chat-config.json was changed, and no longer goes with them
            return None
        if all(getattr(source.manifest, name) == getattr(manifest, name) for name in _PROGRAM):
            return source
    return None


def _of_server(args: argparse.Namespace) -> tuple[BenchReport, dict[str, int]]:
    flags = (*_OF_MODELS, "model_lib", "quantization", *_ENGINE)
    _refuse(args, flags, "is about a model in this process, not a server")
    if args.device != "auto":
        raise UsageError("--device is about a model in this process, not a server")
    import asyncio

    from sterna.cli.bench_client import server
    from sterna.cli.bench_load import LoadOptions, load, metrics, quantiles
    from sterna.cli.bench_report import BenchReport

    if args.rate is not None and not 0 < args.rate < math.inf:
        raise UsageError(f"--rate is {args.rate}, possible is a number above 0")
    if args.timeout is not None and not 0 < args.timeout < math.inf:
        raise UsageError(f"--timeout is {args.timeout}, possible is a number above 0")
    options = LoadOptions(
        **_given(
            requests=_at_least_one(args.requests, "--requests"),
            concurrency=_at_least_one(args.concurrency, "--concurrency"),
            rate=args.rate,
            prompt_words=_one(args.prompt_tokens, "--prompt-tokens"),
            answer_tokens=_one(args.generate_tokens, "--generate-tokens"),
            ignore_eos=args.ignore_eos,
            model=args.served_model,
            seed=args.seed,
            timeout_s=args.timeout,
        )
    )
    to = server(args.model, args.api_key or os.environ.get("OPENAI_API_KEY") or None)
    found = asyncio.run(load(to, options, _progress()))
    settings = {f.name: getattr(options, f.name) for f in fields(options)} | {"model": found.model}
    report = BenchReport(
        kind="load",
        subject=f"{found.model} at {args.model}",
        settings={name: value for name, value in settings.items() if value is not None},
        metrics=metrics(found),
        quantiles=quantiles(found),
    )
    return report, found.failures


def _threads(args: argparse.Namespace) -> int:
    from sterna.runtime.host import usable_cores

    return int(args.threads or usable_cores())


def _plain(value: Any) -> Any:
    """As it is read back from JSON, so that a baseline can be compared."""
    return list(value) if isinstance(value, tuple) else value


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _counts(text: str) -> tuple[int, ...]:
    """For argparse: "128,512" as numbers of at least 1."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of at least 1")
    return counts


def _one(counts: tuple[int, ...] | None, flag: str) -> int | None:
    if counts is not None and len(counts) > 1:
        raise UsageError(f"{flag} takes one number for a server, found {len(counts)}")
    return counts[0] if counts else None


def _at_least_one(count: int | None, flag: str) -> int | None:
    if count is not None and count < 1:
        raise UsageError(f"{flag} is {count}, possible is 1 or more")
    return count


def _progress() -> Callable[[int, int], None]:
    """A line that counts, on a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def tell(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} requests", end=end, file=sys.stderr, flush=True)

    return tell
