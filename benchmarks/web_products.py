"""Matrix products of the program for imitated adapters beside a bare copy, in one page.

    python benchmarks/web_products.py --work FOLDER

FOLDER is one that `benchmarks/web.py --make` filled. Its model is compiled for what Chromium's
software adapter is given; headless, it makes each pipeline alone and by the clock, then runs the
products of a decode and of a prompt of 64 tokens. In turn with each product of a decode run bare
copies, by words and by vectors of four words, that read and write together as many bytes as it
reads of weights, in as many launches; a step's share of a copy is told as the median of all rounds.
Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from sterna.base.artifact import CompileOptions, Entry, Launch
from sterna.base.sizes import evaluate
from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import open_model
from sterna.codegen.renderer import renderer_of
from sterna.codegen.wgsl import MODULE
from sterna.compiler import Source, compile_source
from sterna.ir.expr import const_value
from web import HERE, PROMPT, browser

sys.path.insert(0, str(HERE / "browser"))
from counting_site import Site

TARGET = "webgpu:barrier-free-subgroups"
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
    parser.add_argument("--target", default=TARGET)
    options = parser.parse_args()
    target = parse_target(options.target)
    source = compile_source(open_model(options.work / "converted"), target, SIZES)
    site = Site({"page": HERE / "browser"})
    with tempfile.TemporaryDirectory() as profile, browser(options.chromium, Path(profile)) as one:
        page = one.new_page()
        page.goto(f"{site.url}/page/index.html")
        measure = "async (given) => (await import('/page/products.js')).run(...given)"
        given = [jobs(source), list(COPIES), list(target.features)]
        found = page.evaluate(measure, given)
    slow = sorted(found, key=lambda j: -j["compile_ms"])
    print(f"pipelines one by one: {len(slow)}, {sum(j['compile_ms'] for j in slow) / 1e3:.2f} s")
    print("  " + ", ".join(f"{j['symbol']} {j['compile_ms']:.0f} ms" for j in slow[:8]))
    for entry in ("decode", "prefill"):
        products = [j for j in found if j.get("entry") == entry]
        spent = sum(min(j["ms"]) * j["times"] for j in products)
        moved = sum(j["bytes"] * j["times"] for j in products)
        print(f"products of a {entry}: {spent:.1f} ms, {moved / spent / 1e3:.0f} MB of weights/s")
        for j in products:
            beside = [rate(copy) for copy in j["beside"].values()]
            copies = f", copies {', '.join(f'{r:.0f}' for r in beside)}" if beside else ""
            print(
                f"  {j['symbol']}: {j['times']} x {min(j['ms']):.2f} ms, {rate(j):.0f} MB/s{copies}"
            )
    for sort in COPIES:
        found_shares = sorted(shares([j for j in found if j.get("entry") == "decode"], sort))
        low, middle, high = statistics.quantiles(found_shares)
        spread = f"{low:.2f} to {high:.2f} in half of the rounds"
        print(f"a decode reads {middle:.2f} of a copy of {sort} ({spread})")


def rate(found: dict[str, Any]) -> float:
    """MB a second at best."""
    return found["bytes"] / min(found["ms"]) / 1e3


def shares(products: list[dict[str, Any]], sort: str) -> Iterator[float]:
    """What copies of as many bytes take, of what a step's products take; round by round."""
    for i in range(len(products[0]["ms"])):
        spent = sum(j["times"] * j["ms"][i] for j in products)
        copied = sum(
            j["times"] * copy["ms"][i] * j["bytes"] / copy["bytes"]
            for j in products
            for copy in [j["beside"][sort]]
        )
        yield copied / spent


if __name__ == "__main__":
    main()
