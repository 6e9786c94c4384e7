"""Sterna and the engines that people use, by turns on the same machine and shapes.

    python benchmarks/cpu_peers.py --work DIR --python llama.cpp=/opt/peers/llama/bin/python ... \\
        [--shapes llama-3.2-1b] [--threads 2] [--rounds 3] [--tests 128:33,512:1] [--seconds 200]
        [--limit 300]

Every engine has a Python of its own (benchmarks/peers/*.py say what to install there); an engine
without one takes no part. `--make` first writes models with random weights under DIR and converts
them for each engine: `--maker NAME=PYTHON` where that takes another Python than running does,
`--torch FOLDER` for a folder of torch and transformers that converters shall find.

A round runs every candidate of a comparison once, each in a process of its own, so what disturbs
the machine disturbs all; a process that takes longer than `--limit` seconds is ended and told.
Samples are kept in DIR/samples.json: a run that `--seconds` or an interrupt ended goes on there,
and `--fresh` forgets them. Prints rates, beside what benchmarks/quality.py measured of Sterna's
formats, and ratios, median and range over the rounds, against the best of the other engines in the
same round; and writes results/cpu_peers.json. "others" is how many processors other programs kept
busy meanwhile: figures taken beside half a processor or more say little. --processor-time with
--threads 1 counts the time that each process had of a processor, which such company disturbs less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_model import write_model

from sterna.runtime.host import cpu_features, cpu_name, usable_cores

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cpu_peers.json"
QUALITY = HERE / "results" / "quality.json"  # of the stories model, by benchmarks/quality.py
OWN = "sterna"
RUNNERS = {
    OWN: "peer_sterna.py",
    "llama.cpp": "peer_llama.py",
    "onnxruntime-genai": "peer_onnx.py",
    "openvino-genai": "peer_openvino.py",
    "ctranslate2": "peer_ctranslate2.py",
}
TESTS = ("128:33,512:1", "2048:9")
_USUAL: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": True,
                          "torch_dtype": "bfloat16"}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _USUAL
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "qwen2.5-0.5b": _USUAL
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}


@dataclass(frozen=True)
class Candidate:
    """An engine and a format; `bits` of a weight, and whether activations have 8 bits."""

    engine: str
    form: str
    bits: int
    coarse: bool

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form}"

    @property
    def file(self) -> str:
        """What the engine's model is called under a shape's folder."""
        return f"{self.engine}-{self.form.partition('+')[0]}"


# llama.cpp's, OpenVINO's and accuracy level 4 of onnxruntime multiply with 8-bit activations.
CANDIDATES = (
    Candidate(OWN, "q4f16_1", 4, False),
    Candidate(OWN, "q4f16_1+i8", 4, True),
    Candidate(OWN, "q8f16_1", 8, False),
    Candidate("llama.cpp", "Q4_0", 4, True),
    Candidate("llama.cpp", "Q4_K_M", 4, True),
    Candidate("llama.cpp", "Q8_0", 8, True),
    Candidate("onnxruntime-genai", "int4", 4, True),
    Candidate("openvino-genai", "int4", 4, True),
    Candidate("ctranslate2", "int8", 8, True),
)


@dataclass(frozen=True)
class Bar:
    """A line of the comparison: one of ours against the best of some others."""

    name: str
    ours: str
    metric: str
    others: Callable[[Candidate], bool]


def _four_bits(candidate: Candidate) -> bool:
    return candidate.bits == 4


BARS = (
    *(
        Bar(f"decode at {context}, 4 bits", f"{OWN} q4f16_1", f"tg{context}", _four_bits)
        for context in (128, 2048)
    ),
    *(
        Bar(f"prefill {length}, 4 bits", f"{OWN} q4f16_1", f"pp{length}", _four_bits)
        for length in (128, 512)
    ),
    *(
        Bar(f"prefill {length}, i8, against all", f"{OWN} q4f16_1+i8", f"pp{length}",
            lambda candidate: True)
        for length in (128, 512)
    ),
    Bar("decode at 128, 8 bits", f"{OWN} q8f16_1", "tg128", lambda c: c.bits == 8),
    Bar("prefill 512, 8 bits", f"{OWN} q8f16_1", "pp512", lambda c: c.bits == 8),
)  # fmt: skip

Samples = dict[str, dict[str, float]]  # "shape threads tests round candidate" -> rates


def make(options: argparse.Namespace, candidates: Iterable[Candidate]) -> None:
    """What is not there yet; a conversion that fails is told, and leaves that engine out."""
    for shape in options.shapes:
        folder = options.work / shape
        source = folder / "source"
        if not (source / "model.safetensors").exists():
            write_model(SHAPES[shape], source)
        for candidate in candidates:
            output = folder / candidate.file
            if output.exists():
                continue
            print(f"making {output}", file=sys.stderr, flush=True)
            maker = options.maker.get(candidate.engine, options.python[candidate.engine])
            command = [maker, runner(candidate.engine), "make", source, output, candidate.form]
            if subprocess.run(command, env=environment(candidate.engine, options.torch)).returncode:
                shutil.rmtree(output, ignore_errors=True)
                print(f"{candidate.name} could not be made for {shape}", file=sys.stderr)


def runner(engine: str) -> Path:
    return HERE / "peers" / RUNNERS[engine]


def environment(engine: str, torch: Path | None = None) -> dict[str, str]:
    """Modules of Sterna's checkout for itself only; `torch` for who converts."""
    found = dict(os.environ)
    found.pop("PYTHONPATH", None)
    if engine == OWN:
        found["PYTHONPATH"] = str(HERE.parent / "src")
    elif torch is not None:
        found["PYTHONPATH"] = str(torch)
    return found


def turns(
    options: argparse.Namespace, candidates: Iterable[Candidate]
) -> Iterator[tuple[Any, ...]]:
    """All that is to be measured, in order: the candidates by turns, where a bar compares them."""
    for number in range(options.rounds):
        for threads in options.threads:
            for shape in options.shapes:
                for tests in options.tests:
                    for candidate in filter(compared_in(tests), candidates):
                        yield shape, threads, tests, number, candidate


def compared_in(tests: str) -> Callable[[Candidate], bool]:
    """Whether a candidate is compared in what these tests measure; all are where no bar is."""
    lengths = {test.partition(":")[0] for test in tests.split(",")}
    bars = [bar for bar in BARS if bar.metric[2:] in lengths]

    def compared(candidate: Candidate) -> bool:
        own = candidate.engine == OWN
        return not bars or any(
            bar.ours == candidate.name if own else bar.others(candidate) for bar in bars
        )

    return compared


def measure(options: argparse.Namespace, candidates: Iterable[Candidate]) -> Samples:
    """Samples of earlier runs and of this one, which ends when its time is over."""
    kept = options.work / ("processor_time.json" if options.processor_time else "samples.json")
    samples: Samples = {}
    if kept.exists() and not options.fresh:
        samples = read_samples(kept)
    end = time.monotonic() + options.seconds
    for shape, threads, tests, number, candidate in turns(options, candidates):
        model = options.work / shape / candidate.file
        title = f"{shape} {threads} {tests} {number} {candidate.name}"
        if title in samples or not model.exists():
            continue
        if time.monotonic() > end:
            print("the time is over; the same command goes on from here", file=sys.stderr)
            break
        command = [options.python[candidate.engine], runner(candidate.engine), "run", model]
        command += [candidate.form, "--threads", str(threads), "--tests", tests]
        command += ["--processor-time"] if options.processor_time else []
        before = _busy()
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, env=environment(candidate.engine), text=True,
                timeout=options.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{title}: not done in {options.limit:g} seconds", file=sys.stderr)
            continue
        others = _others(before, _busy())
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            print(f"{title}: ended with status {done.returncode}", file=sys.stderr)
            continue
        samples[title] = json.loads(lines[-1]) | {"others": others}
        print(title, samples[title], file=sys.stderr, flush=True)
        beside = kept.with_suffix(".partial")
        beside.write_text(json.dumps(samples, indent=1) + "\n")
        beside.replace(kept)
    return samples


def read_samples(path: Path) -> Samples:
    """What earlier runs measured; ends with a sentence where the file is none of theirs."""
    found: Samples = {}
    try:
        found = json.loads(path.read_text())
        whole = isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())
    except ValueError:
        whole = False
    if not whole:
        sys.exit(f"{path} has no samples that can be read: --fresh measures all anew")
    return found


def _busy() -> tuple[float, float, float]:
    """Seconds by the clock, of all processors at work (Linux), and of our own processes' work."""
    own = os.times()
    try:
        cells = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        ticks = sum(map(int, cells)) - int(cells[3]) - int(cells[4])
        at_work = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        at_work = math.nan
    used = own.user + own.system + own.children_user + own.children_system
    return time.monotonic(), at_work, used


def _others(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """Processors that others kept busy meanwhile, on average."""
    clock, at_work, own = (b - a for a, b in zip(before, after, strict=True))
    return round((at_work - own) / clock, 2)


def by_round(
    samples: Samples, shape: str, threads: int, metric: str
) -> dict[str, dict[int, float]]:
    """{candidate: {round: rate}}."""
    found: dict[str, dict[int, float]] = {}
    for title, rates in samples.items():
        of, count, _, number, name = title.split(" ", 4)
        if (of, int(count)) == (shape, threads) and metric in rates:
            found.setdefault(name, {})[int(number)] = rates[metric]
    return found


def ratios(rates: Mapping[str, Mapping[int, float]], bar: Bar) -> tuple[list[float], str]:
    """Ours over the best other in each round; and which that was most often."""
    others = [c.name for c in CANDIDATES if c.engine != OWN and bar.others(c) and c.name in rates]
    found, best = [], []
    for number, ours in sorted(rates.get(bar.ours, {}).items()):
        same = {name: rates[name][number] for name in others if number in rates[name]}
        if len(same) == len(others) and same:
            winner = max(same, key=same.__getitem__)
            found.append(ours / same[winner])
            best.append(winner)
    return found, statistics.mode(best) if best else ""


def report(samples: Samples) -> dict[str, Any]:
    """Rates and ratios as one object, and as a table on stdout."""
    result: dict[str, Any] = {}
    for shape in SHAPES:
        for threads in sorted({int(t.split()[1]) for t in samples if t.split()[0] == shape}):
            print(f"\n{shape}, {threads} threads")
            told = _rates(samples, shape, threads)
            compared = _ratios(samples, shape, threads)
            result[f"{shape}, {threads} threads"] = {"tokens_per_s": told, "ratios": compared}
    return result


def _rates(samples: Samples, shape: str, threads: int) -> dict[str, dict[str, float]]:
    metrics = sorted(
        {
            metric
            for title, rates in samples.items()
            if title.startswith(f"{shape} {threads} ")
            for metric in rates
            if metric != "others"
        },
        key=lambda metric: (int(metric[2:]), metric),
    )
    columns = (*metrics, "others", "perplexity", "KL")
    print(f"  {'tokens/s, median':28}" + "".join(f"{name:>12}" for name in columns))
    found: dict[str, dict[str, float]] = {}
    for candidate in CANDIDATES:
        line = {}
        for metric in metrics:
            value = _median(samples, shape, threads, candidate.name, metric)
            if not math.isnan(value):
                line[metric] = value
        if line:
            line["others"] = _median(samples, shape, threads, candidate.name, "others")
            found[candidate.name] = line | quality(candidate)
            cells = "".join(f"{found[candidate.name].get(name, ''):>12}" for name in columns)
            print(f"  {candidate.name:28}{cells}")
    return found


def _median(samples: Samples, shape: str, threads: int, name: str, metric: str) -> float:
    found = by_round(samples, shape, threads, metric).get(name, {})
    return round(statistics.median(found.values()), 2) if found else math.nan


def quality(candidate: Candidate) -> dict[str, float]:
    """Of the stories in one of Sterna's formats: perplexity, and KL divergence from f32."""
    if candidate.engine != OWN or not QUALITY.exists():
        return {}
    measured = json.loads(QUALITY.read_text())
    scheme, _, activations = candidate.form.partition("+")
    found = measured["activations" if activations else "schemes"].get(activations or scheme)
    return found and {"perplexity": found["perplexity"]["stories"], "KL": found["mean_kl"]}


def _ratios(samples: Samples, shape: str, threads: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for bar in BARS:
        each, best = ratios(by_round(samples, shape, threads, bar.metric), bar)
        if not each:
            continue
        middle = statistics.median(each)
        found[bar.name] = {
            "median": round(middle, 3),
            "rounds": [round(ratio, 3) for ratio in each],
            "best_other": best,
        }
        span = f"{min(each):.2f} to {max(each):.2f}"
        print(f"  {bar.name:32}{middle:6.2f} x  ({span}) {best}")
    return found


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if name not in RUNNERS or not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON of {', '.join(RUNNERS)}")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", type=_pair, action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--maker", type=_pair, action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--torch", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[usable_cores(), 1])
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PROMPT:ANSWER")
    parser.add_argument("--candidates", nargs="+", help="parts of names (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of one process")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="instead of the clock's")
    options = parser.parse_args()
    options.python = {OWN: sys.executable, **dict(options.python)}
    options.maker = dict(options.maker)
    wanted = options.candidates or [""]
    chosen = [c for c in CANDIDATES
              if c.engine in options.python and any(w in c.name for w in wanted)]  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    if options.make:
        make(options, chosen)
    samples = measure(options, chosen)
    features = cpu_features() or frozenset()
    result = {
        "processor": cpu_name(),
        "avx512_vnni": "avx512_vnni" in features,
        **report(samples),
    }
    results = RESULTS.with_stem("cpu_peers_time") if options.processor_time else RESULTS
    results.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
