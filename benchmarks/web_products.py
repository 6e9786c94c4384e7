"""Matrix products of the program for imitated adapters beside a bare copy, in one page.

    python benchmarks/web_products.py --work FOLDER

FOLDER is one that `benchmarks/web.py --make` filled. Its model is compiled for
webgpu:barrier-free; a headless Chromium on its software adapter makes each pipeline alone and by
the clock, then runs the products of a decode and of a prompt of 64 tokens in turn with a copy by
words and by vectors of four words, and keeps each one's best time. A product's rate counts the
bytes of its weights, a copy's what it reads and writes. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from sterna.base.artifact import Entry, Launch
from sterna.base.sizes import evaluate
from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import open_model
from sterna.codegen.renderer import renderer_of
from sterna.codegen.wgsl import MODULE
from sterna.compiler import CompileOptions, Source, compile_source
from sterna.ir.expr import const_value
from web import HERE, PROMPT, browser

sys.path.insert(0, str(HERE / "browser"))
from counting_site import Site

TARGET = "webgpu:barrier-free"
SIZES = CompileOptions(context_window_size=512, prefill_chunk_size=128, max_batch_size=1)
COPIES = ("u32", "vec4<f32>")


def jobs(source: Source) -> list[dict[str, Any]]:
    """Every kernel's module; of products their launches, bytes of weights and times a step."""
    code = renderer_of(source.table.target).library_source(source.parts)
    prelude, *modules = code.split(MODULE)
    texts = {m.partition("\n")[0]: prelude + m.partition("\n")[2] for m in modules}
    times = {e.name: Counter(launched(e)) for e in source.manifest.entries}
    found = []
    for title, kernel in source.table.kernels.items():
        for phase in kernel.source.launches:
            job: dict[str, Any] = {"symbol": phase.symbol, "code": texts[phase.symbol]}
            entry = next((e for e in ("decode", "prefill") if times[e][title]), "")
            packed = any(p.dtype.name == "u32" for p in kernel.func.params)
            if entry and packed and kernel.op != "take":  # that looks up a few rows
                dims = {d.name: 1 if entry == "decode" else PROMPT for d in kernel.func.dims}
                shapes = [([const_value(d) for d in p.shape], p.dtype) for p in kernel.func.params]
                job |= {
                    "entry": entry, "times": times[entry][title],
                    "groups": evaluate(phase.groups, dims),
                    "dims": [dims[d] for d in kernel.source.dims], "buffers": len(phase.buffers),
                    "bytes": sum(prod(map(int, s)) * t.bytes for s, t in shapes if None not in s),
                }  # fmt: skip
            found.append(job)
    return found


def launched(entry: Entry) -> Iterator[str]:
    for step in entry.steps:
        if isinstance(step, Launch):
            yield step.kernel
        else:
            yield from (launch.kernel for launch in step.body for _ in range(step.count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    source = compile_source(open_model(options.work / "converted"), parse_target(TARGET), SIZES)
    site = Site({"page": HERE / "browser"})
    with tempfile.TemporaryDirectory() as profile, browser(options.chromium, Path(profile)) as one:
        page = one.new_page()
        page.goto(f"{site.url}/page/index.html")
        measure = "async ([jobs, copies]) => (await import('/page/products.js')).run(jobs, copies)"
        found = page.evaluate(measure, [jobs(source), list(COPIES)])
    slow = sorted(found["jobs"], key=lambda j: -j["compile_ms"])
    print(f"pipelines one by one: {len(slow)}, {sum(j['compile_ms'] for j in slow) / 1e3:.2f} s")
    print("  " + ", ".join(f"{j['symbol']} {j['compile_ms']:.0f} ms" for j in slow[:8]))
    for entry in ("decode", "prefill"):
        products = [j for j in found["jobs"] if j.get("entry") == entry]
        spent = sum(j["ms"] * j["times"] for j in products)
        moved = sum(j["bytes"] * j["times"] for j in products)
        print(f"products of a {entry}: {spent:.1f} ms, {moved / spent / 1e3:.0f} MB of weights/s")
        for j in products:
            rate = j["bytes"] / j["ms"] / 1e3
            print(f"  {j['symbol']}: {j['times']} x {j['ms']:.2f} ms, {rate:.0f} MB/s")
    for copy in found["copies"]:
        print(f"copy of {copy['sort']}: {copy['bytes'] / copy['ms'] / 1e3:.0f} MB/s")


if __name__ == "__main__":
    main()
