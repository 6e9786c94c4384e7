"""The package's runtime equals Python's: traces are written here, and node replays them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import traces
from building import run
from compiled import Part, step_input
from web_models import WebModel

from sterna.checkpoint.mlc import read_mlc_folder
from sterna.runtime.bundle import read_bundle
from sterna.runtime.work_groups import load_on

PAGES = 40
REPLAY = Path(__file__).with_name("replay.mjs")
STEPS = (
    [Part([5] * 20, 0, [3, 11])],
    [Part([5] * 70, 20, [3, 11, 2, 30, 4, 5])],
    [Part([4], 37, [3, 11, 2])],
    [Part([6], 3, [7]), Part([8], 38, [3, 11, 2])],
)


def test_what_python_does_is_replayed(dist: Path, tern: WebModel, tmp_path: Path) -> None:
    random = Random(6)
    program = tern.folder / "webgpu.sterna"
    device = traces.Recorder()
    tensors = read_mlc_folder(tern.converted).tensors
    executable = load_on(device, program, tensors, num_pages=PAGES)
    size = executable.manifest.kv_cache.page_size
    batches = [step_input(parts, size) for parts in STEPS]
    found = {
        "num_pages": PAGES,
        "sizes": traces.sizes(random),
        "draws": traces.draws(random),
        "pages": traces.pages(random),
        "batches": traces.batches(random, read_bundle(program).manifest, PAGES),
        "samples": traces.samples(random),
        "packs": traces.packs(random),
        "choices": [
            case for batch in batches for case in traces.choices(executable, device, batch)
        ],
        "tiles": traces.tiles(read_bundle(program).manifest),
        "memory": [traces.memory(read_bundle(program).manifest)],
        "launches": [
            [traces.fields(batch), traces.launches(executable, device, batch)] for batch in batches
        ],
    }
    refused = [case for case in found["batches"] if case[1] is None]
    assert 20 < len(refused) < len(found["batches"]) - 20
    file = tmp_path / "traces.json"
    file.write_text(json.dumps(found))
    told = run("node", str(REPLAY), str(dist), str(file), str(program))
    assert told.count(" equal") == len(found) - 1, told
    sys.stdout.write(told)
