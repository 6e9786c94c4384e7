"""Decode, prefill and the host's part of a step on devices, each against what the device can do.

    python benchmarks/gpu.py [--devices cuda] [--config CONFIG_JSON] [--scheme q4f16_1]
        [--activations i16] [--context 512] [--prompt 2048] [--rounds 3] [--out FILE]

A model of random weights (Llama 3.1 8B's shape unless CONFIG_JSON says another), compiled for each
device, with `--activations` as `sterna compile` has it (matrix units take all but f32, on the
targets that have some: f16 is the one instruction a product, for prompts and decode alike). In each
round the devices take turns, so that what else runs disturbs all alike; ratios are to the first
device of the list. Decode is a step of one token with its greedy token read back: bytes are weights
and cached keys and values once (the manifest's own formulas), set against a copy kernel of ours.
Prefill is a prompt in chunks as large as the library takes, its operations set against bfloat16
products of PyTorch where that is installed for the device, and against chains of multiply-adds of
ours. The host's part is what a step takes beyond its share of many that are queued and waited for
once. An engine's tokens are timed too: with scheduling, detokenization and all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from random_model import write_model
from sampling import WAYS, orders

from sterna.base.artifact import Activations, CompileOptions, Manifest
from sterna.base.target import parse_target
from sterna.compiler import compile_model
from sterna.engine.engine import Engine
from sterna.engine.loader import Located
from sterna.engine.options import EngineOptions
from sterna.inspection.costs import step_cost
from sterna.inspection.kernel_times import step_input
from sterna.inspection.peaks import Peaks, measure_peaks
from sterna.local import locate
from sterna.runtime.devices import choose_device
from sterna.runtime.executable import Executable
from sterna.tune.device_peaks import device_peaks

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QUEUED = 16  # steps waited for once
_SECONDS = 2.0  # of one measurement
_SIDE = 8192  # of the matrices that PyTorch multiplies


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on a device, ready for steps of one sequence."""

    device: str
    executable: Executable
    located: Located
    peaks: Peaks
    matmul: float | None  # operations a second of bfloat16 products, as PyTorch reaches them

    @property
    def manifest(self) -> Manifest:
        return self.executable.manifest


def load(device: str, source: Path, options: argparse.Namespace) -> Loaded:
    located = locate(source, device=device, quantization=options.scheme)
    manifest = located.manifest()
    if options.activations is not None:
        target = parse_target(manifest.target)
        library = options.folder / f"{device.replace(':', '-')}{target.suffix}"
        asked = CompileOptions(activations=options.activations)
        compile_model(located.folder, target, library, options=asked)
        located = replace(located, library=library)
        manifest = located.manifest()
    module, index = choose_device(device, manifest)
    pages = -(-(max(options.context, options.prompt) + _QUEUED) // manifest.kv_cache.page_size)
    executable = module.load(
        located.library, located.weights, num_pages=pages, threads=None, index=index
    )
    target = parse_target(manifest.target)
    peaks = device_peaks(target) if target.group_threads else measure_peaks()
    return Loaded(device, executable, located, peaks, torch_matmul(device))


def torch_matmul(device: str) -> float | None:
    """Operations a second of bfloat16 products; None where PyTorch has no such device."""
    kind, _, index = device.partition(":")
    if kind not in ("cuda", "rocm") or importlib.util.find_spec("torch") is None:
        return None
    import torch  # type: ignore[import-not-found]

    if not torch.cuda.is_available():
        return None
    place = f"cuda:{index or 0}"
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=place) for _ in range(2))

    def product() -> None:
        for _ in range(_QUEUED):
            torch.matmul(a, b)
        torch.cuda.synchronize(place)

    return 2 * _SIDE**3 * _QUEUED / seconds(product)


def seconds(call: Callable[[], object]) -> float:
    """The quickest quarter's slowest of many calls; the first warms up."""
    call()
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(found) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return float(np.percentile(found, 25))


def decode(loaded: Loaded, context: int) -> dict[str, float]:
    executable, step = loaded.executable, step_input(loaded.manifest, context, 1)
    order = orders(WAYS["greedy"], 1, loaded.manifest.model.vocab_size)

    def one() -> None:
        executable.run(step)
        executable.sample(order)

    def many() -> None:
        for _ in range(_QUEUED):
            executable.run(step)
        executable.sample(order)

    took, queued = seconds(one), seconds(many) / _QUEUED
    moved = step_cost(loaded.manifest, loaded.manifest.entry("decode"), context).bytes
    return {
        "tokens_per_s": 1 / took,
        "gigabytes_per_s": moved / took / 1e9,
        "of_copy": moved / took / loaded.peaks.bandwidth,
        "host_microseconds": (took - queued) * 1e6,
    }


def chunks(loaded: Loaded, prompt: int) -> Iterator[tuple[int, int]]:
    """(cached, new) tokens of the steps of a prompt."""
    entry = loaded.manifest.entry("prefill")
    most = next(dim.hi for dim in entry.dims if dim.name == "n")
    for begin in range(0, prompt, most):
        yield begin, min(most, prompt - begin)


def prefill(loaded: Loaded, prompt: int) -> dict[str, float]:
    entry, plan = loaded.manifest.entry("prefill"), list(chunks(loaded, prompt))
    steps = [step_input(loaded.manifest, *chunk) for chunk in plan]

    def whole() -> None:
        for step in steps:
            loaded.executable.run(step)
        loaded.executable.logits()

    took = seconds(whole)
    done = sum(step_cost(loaded.manifest, entry, at, tokens).flops for at, tokens in plan)
    found = {
        "tokens_per_s": prompt / took,
        "teraflops": done / took / 1e12,
        "of_multiply_adds": done / took / loaded.peaks.flops,
    }
    return found if loaded.matmul is None else found | {"of_matmul": done / took / loaded.matmul}


def engine_decode(loaded: Loaded, context: int, tokens: int = 64) -> float:
    """Tokens a second of an engine, after its first."""
    located = loaded.located
    with Engine(resolve=lambda *_: located, options=EngineOptions(mode="local")) as engine:
        prompt = [7 + i % 512 for i in range(context)]
        times = [
            time.perf_counter()
            for _ in engine.completions.create(
                prompt=prompt, max_tokens=tokens, ignore_eos=True, temperature=0, stream=True
            )
        ]
    return (len(times) - 1) / (times[-1] - times[0])


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: _short(statistics.median(r[name] for r in rounds)) for name in rounds[0]}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def measure(models: list[Loaded], options: argparse.Namespace) -> dict[str, Any]:
    ways: dict[str, Callable[[Loaded], dict[str, float]]] = {
        "decode": lambda m: decode(m, options.context),
        "prefill": lambda m: prefill(m, options.prompt),
    }
    taken: dict[str, dict[str, list[dict[str, float]]]] = {
        m.device: {way: [] for way in ways} for m in models
    }
    for _ in range(options.rounds):
        for loaded in models:
            for way, run in ways.items():
                taken[loaded.device][way].append(run(loaded))
    first = taken[models[0].device]
    found: dict[str, Any] = {}
    for loaded in models:
        own = taken[loaded.device]
        found[loaded.device] = {
            "target": loaded.manifest.target,
            "copy_gigabytes_per_s": _short(loaded.peaks.bandwidth / 1e9),
            "multiply_add_teraflops": _short(loaded.peaks.flops / 1e12),
            "matmul_teraflops": loaded.matmul and _short(loaded.matmul / 1e12),
        } | {way: middle(own[way]) for way in ways}
        if loaded is not models[0]:
            found[loaded.device]["to_the_first"] = {
                way: _short(
                    statistics.median(
                        a["tokens_per_s"] / b["tokens_per_s"]
                        for a, b in zip(own[way], first[way], strict=True)
                    )
                )
                for way in ways
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", nargs="+", default=["cuda"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--scheme", default="q4f16_1")
    parser.add_argument("--activations", choices=get_args(Activations))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = json.loads(options.config.read_text()) if options.config else CONFIG
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        options.folder = Path(folder)
        source = options.folder / "random"
        write_model(config, source)
        models = []
        for device in options.devices:
            models.append(load(device, source, options))
            stack.enter_context(closing(models[-1].executable))
        found = measure(models, options)
        stack.close()
        for loaded in models:
            found[loaded.device]["engine_tokens_per_s"] = _short(
                engine_decode(loaded, options.context)
            )
    told = {"scheme": options.scheme, "activations": options.activations, "devices": found}
    text = json.dumps(told, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
