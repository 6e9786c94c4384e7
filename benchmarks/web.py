"""Sterna in a browser beside transformers.js and wllama: one headless Chromium, one shape.

    python benchmarks/web.py --work FOLDER --make --onnx PYTHON --gguf PYTHON [--torch FOLDER]
    python benchmarks/web.py --work FOLDER

`--make` writes a model with random weights into FOLDER, converts it for each engine, and asks npm
for the peers. Each is measured by turns, in a profile of its own: a first visit, whose bytes are
counted; a second one, from the browser's caches to the first token; a prompt; an answer. The
adapter is Chromium's own on the processor (SwiftShader), which has no f16: wllama, which wants it,
computes in WebAssembly there. Beside it stands what a bare copy in WGSL reaches, and what storing
256 MiB costs in each of the browser's stores. Prints a table, writes results/web.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from random_model import write_model

from sterna.base.artifact import CompileOptions
from sterna.base.target import parse_target
from sterna.convert import convert_weight, gen_config
from sterna.runtime.host import cpu_name, usable_cores
from sterna.web_folder import compile_folder

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "browser"))
from counting_site import Site  # noqa: E402

RESULTS = HERE / "results" / "web.json"
PACKAGES = ("@huggingface/transformers@4.3.2", "@wllama/wllama@3.13.0")
FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
]
CODE = (".js", ".mjs", ".wasm")
PROMPT, ANSWER, WARM = 64, 17, 16  # tokens
MINUTES = 3  # for one call into a page

# The widths of SmolLM-135M, four of its thirty layers, a vocabulary that leaves them the weight.
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Candidate:
    """An engine: the module that drives it, its model in the work folder."""

    name: str
    peer: str
    model: str


CANDIDATES = (
    Candidate("sterna", "peer_sterna.js", "sterna/"),
    Candidate("transformers.js, WebGPU", "peer_transformers.js", "transformers"),
    Candidate("wllama", "peer_wllama.js", "q4_0.gguf"),
)
OPEN = """async ([peer, model, prompt]) => {
  const begin = performance.now();
  window.peer = await (await import(`/page/${peer}`)).open(model);
  const { first } = await window.peer.answer(prompt, 4);
  return (performance.now() - begin) / 1000;
}"""


def make(work: Path, onnx: str | None, gguf: str | None, torch: Path | None) -> None:
    """The peers from npm, and the model for each engine, where they are not there yet."""
    source, converted = work / "source", work / "converted"
    if not source.exists():
        write_model(SHAPE, source)
    if not (work / "node_modules").exists():
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([*npm, "--prefix", str(work), *PACKAGES], check=True)
    if not converted.exists():
        convert_weight(source, converted, quantization="q4f32_1")
        gen_config(source, converted, quantization="q4f32_1")
    sizes = CompileOptions(context_window_size=512, prefill_chunk_size=128, max_batch_size=1)
    compile_folder(converted, parse_target("webgpu"), work / "sterna", options=sizes)
    if onnx is not None and not (work / "transformers").exists():
        path = {"PYTHONPATH": str(torch)} if torch else {}
        command = [onnx, HERE / "browser" / "make_onnx.py", source, work / "transformers"]
        subprocess.run(command, check=True, env=path)
    if gguf is not None and not (work / "q4_0.gguf").exists():
        peer = HERE / "peers" / "peer_llama.py"
        subprocess.run([gguf, peer, "make", source, work / "q4_0.gguf", "Q4_0"], check=True, env={})


@contextmanager
def browser(chromium: str, folder: Path) -> Iterator[Any]:
    with sync_playwright() as driver:
        kind = driver.chromium
        context = kind.launch_persistent_context(folder, executable_path=chromium, args=FLAGS)
        context.set_default_timeout(MINUTES * 60_000)
        yield context
        context.close()


def measure(site: Site, chromium: str, candidate: Candidate, draw: random.Random) -> dict[str, Any]:
    """One engine in a browser of its own."""

    def prompt(length: int) -> list[int]:
        return [draw.randrange(300, 400) for _ in range(length)]

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as profile, browser(chromium, Path(profile)) as context:
        for visit in ("first", "from_cache"):
            site.sent.clear()
            page = context.new_page()
            page.goto(f"{site.url}/page/index.html")
            given = [candidate.peer, f"/models/{candidate.model}", prompt(WARM)]
            found[f"{visit}_visit_s"] = page.evaluate(OPEN, given)
            found[f"{visit}_visit_bytes"] = sum(site.sent.values())
            if visit == "first":
                found["code"] = code_bytes(site)
                page.close()
        for length, count, metric in ((PROMPT, 1, "prefill"), (WARM, ANSWER, "decode")):
            told = page.evaluate("([p, n]) => window.peer.answer(p, n)", [prompt(length), count])
            if told["tokens"] != count:
                sys.exit(f"{candidate.name}: {told['tokens']} tokens instead of {count}")
            tokens, seconds = told["prompt"], told["first"]
            if metric == "decode":
                tokens, seconds = count - 1, told["rest"]
            found[f"{metric}_tokens_per_s"] = tokens / seconds
        found["detail"] = page.evaluate("window.peer.detail")
    return found


def code_bytes(site: Site) -> dict[str, int]:
    """Bytes of JavaScript and WebAssembly of a visit, and the same through gzip."""
    files = [p for p in site.sent if p.endswith(CODE) and not p.startswith("/page/")]
    data = [found.read_bytes() for found in map(site.find, files) if found is not None]
    return {
        "bytes": sum(map(len, data)),
        "gzip": sum(len(gzip.compress(d)) for d in data),
        "files": len(data),
    }


def adapter(site: Site, chromium: str, pieces: int) -> dict[str, Any]:
    """What a copy reaches, and what storing 8 MiB at a time costs."""
    with tempfile.TemporaryDirectory() as profile, browser(chromium, Path(profile)) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/index.html")
        copy = "async (sort) => (await import('/page/floor.js')).copy(sort)"
        rates = {sort: page.evaluate(copy, sort) for sort in ("u32", "vec4<f32>")}
        found = {"name": rates["u32"]["name"]}
        found["copy_bytes_per_s"] = {sort: r["bytes_per_s"] for sort, r in rates.items()}
        store = "async (n) => (await import('/page/storage.js')).storage(n, 8)"
        found["storage_256_mib"] = page.evaluate(store, pieces)
        return found


def report(rounds: list[dict[str, dict[str, Any]]], weights: int) -> dict[str, Any]:
    """Medians over rounds, and ours against each other; the same as a table."""
    result: dict[str, Any] = {}
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        middle = {
            key: statistics.median(run[key] for run in runs)
            for key in runs[0]
            if isinstance(runs[0][key], float | int)
        }
        result[name] = {**middle, "code": runs[0]["code"], "detail": runs[-1]["detail"]}
    own = result.get("sterna")
    print(f"{'':26}{'decode/s':>9}{'x':>7}{'prefill/s':>10}{'x':>7}{'from cache':>11}{'MB':>7}")
    for name, found in result.items():
        cells = ""
        for metric in ("decode_tokens_per_s", "prefill_tokens_per_s"):
            ratio = own[metric] / found[metric] if own else float("nan")
            found[f"sterna_over_this_{metric.split('_')[0]}"] = ratio
            cells += f"{found[metric]:>{9 if 'decode' in metric else 10}.2f}{ratio:>7.2f}"
        cells += f"{found['from_cache_visit_s']:>10.1f}s{found['first_visit_bytes'] / 1e6:>7.1f}"
        print(f"{name:26}{cells}")
    if own:
        own["weight_bytes_per_s_in_decode"] = weights * own["decode_tokens_per_s"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--onnx", metavar="PYTHON", help="one with onnxruntime_genai and onnx")
    parser.add_argument("--gguf", metavar="PYTHON", help="one with gguf and llama_cpp")
    parser.add_argument("--torch", type=Path, help="where torch and transformers are, if apart")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--candidates", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.make:
        make(options.work, options.onnx, options.gguf, options.torch)
    chosen = [
        c for c in CANDIDATES
        if any(part in c.name for part in options.candidates)
        and (options.work / c.model).exists()
    ]  # fmt: skip
    folders = {"dist": HERE.parent / "web" / "dist", "page": HERE / "browser"}
    folders |= {"npm": options.work / "node_modules", "models": options.work}
    site = Site(folders)
    draw = random.Random(0)
    rounds = []
    for _ in range(options.rounds):
        found: dict[str, dict[str, Any]] = {}
        for candidate in chosen:
            found[candidate.name] = measure(site, options.chromium, candidate, draw)
            print(candidate.name, json.dumps(found[candidate.name])[:400], file=sys.stderr)
        rounds.append(found)
    weights = sum(p.stat().st_size for p in (options.work / "sterna").glob("params_shard_*.bin"))
    result: dict[str, Any] = {
        "processor": cpu_name(), "cores": usable_cores(), "date": time.strftime("%Y-%m-%d"),
        "adapter": adapter(site, options.chromium, 32), "engines": report(rounds, weights),
    }  # fmt: skip
    if own := result["engines"].get("sterna"):
        copies = result["adapter"]["copy_bytes_per_s"]
        reached = own["weight_bytes_per_s_in_decode"]
        own["weight_bytes_over_copy"] = {sort: reached / rate for sort, rate in copies.items()}
    print(json.dumps(result["adapter"], indent=1))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
