"""Measuring and tuning a tiny model: bits are checked, interrupts lose nothing, compile obeys."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from candidates import fits, unfit
from compiled import Compiled, all_logits

from sterna.base.artifact import CompileOptions
from sterna.base.errors import ScheduleError, Unavailable, UsageError
from sterna.base.target import Target, host_target, is_of_host, parse_target
from sterna.cli.main import main
from sterna.compiler import compile_model
from sterna.inspection.page import to_page
from sterna.inspection.peaks import Peaks
from sterna.ir.compute import Group
from sterna.runtime.devices import parse_device
from sterna.runtime.library import read_manifest
from sterna.schedule.choose import Plan
from sterna.tune.database import Database, here
from sterna.tune.race import Time
from sterna.tune.report import tuning_report
from sterna.tune.session import Budget, Progress, kernels_of, tune
from sterna.tune.space import everything
from sterna.tune.workers import Workers

SMALL = CompileOptions(prefill_chunk_size=16, max_batch_size=2)


class Faked:
    """Times without a compiler: from the knobs, the shipped plan's anew each time."""

    machines = 1

    def __init__(self) -> None:
        self.asked: list[int] = []

    def measure(
        self, group: Group, plans: Sequence[Plan], target: Target, sizes: Mapping[str, int]
    ) -> list[Time]:
        self.asked.append(len(plans))
        drift = 1 + 0.01 * len(self.asked)
        return [Time(1e-3 * drift / (1 + p.knobs.lanes + hash(p) % 7), True) for p in plans]


@pytest.fixture
def faked() -> Faked:
    return Faked()


def test_a_session_is_interrupted_and_goes_on(
    kernels: list[Progress], folder: Path, tmp_path: Path, faked: Faked
) -> None:
    database, target = Database(tmp_path / "plans.sqlite"), host_target()

    def stop(kernel: Progress, done: float, total: float) -> None:
        assert 0 <= done <= total
        if sum(len(k.times) for k in kernels) > len(kernels) + 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(kernels, target, database, Budget(trials=10), faked, report=stop)
    kept = {(r.kernel, r.plan) for r in database.rows(here(target))}
    assert kept >= {(k.kernel, p) for k in kernels for p in k.times}
    assert len(kept) > len(kernels) + 20

    again = kernels_of(folder, target, SMALL)
    tune(again, target, database, Budget(trials=10), faked)
    best = database.best(here(target))
    for kernel in again:
        assert len(kernel.times) == min(10, len({*everything(kernel.shipped), kernel.shipped}))
        assert kernel.after <= kernel.before
        assert kernel.times[best[kernel.kernel]] == kernel.after
    assert kept <= {(k.kernel, p) for k in again for p in k.times}

    calls = len(faked.asked)
    tune(kernels_of(folder, target, SMALL), target, database, Budget(trials=10), faked)
    assert len(faked.asked) == calls, "what is known was measured again"


def test_minutes_end(kernels: list[Progress], tmp_path: Path, faked: Faked) -> None:
    """A clock that moves by a second each time somebody looks, so that no machine is too slow."""

    def limited(minutes: float) -> None:
        ticks = itertools.count()
        database = Database(tmp_path / "plans.sqlite")
        tune(
            kernels,
            host_target(),
            database,
            Budget(trials=None, minutes=minutes),
            faked,
            clock=lambda: float(next(ticks)),
        )

    limited(1 / 60)  # one second has gone at the first look
    assert [len(k.times) for k in kernels] == [0] * len(kernels)
    limited((len(kernels) + 40) / 60)
    assert all(k.times for k in kernels)
    assert len(kernels[0].times) > 1
    assert len(faked.asked) <= len(kernels) + 40


def test_a_page_tells_of_every_kernel(
    kernels: list[Progress], tmp_path: Path, faked: Faked
) -> None:
    tune(kernels, host_target(), Database(tmp_path / "plans.sqlite"), Budget(trials=3), faked)
    kernels[0].noise = 0.5
    page = to_page(tuning_report("<tiny>", kernels, Peaks(1e10, 1e11)))
    assert "<tiny>" not in page
    assert "Roofline" in page
    assert "scattered" in page
    assert all(f"<td>{i}</td>" in page for i in range(1, len(kernels) + 1))
    empty = to_page(tuning_report("none", [replace(k, times={}) for k in kernels], Peaks(1e9, 1e9)))
    assert f"{len(kernels)} kernels were not reached" in empty


def test_compile_takes_tuned_plans_and_no_bit_changes(
    kernels: list[Progress], folder: Path, tmp_path: Path
) -> None:
    draw, tuned = random.Random(1), {}
    for kernel in kernels:
        space = [p for p in everything(kernel.shipped) if p != kernel.shipped]
        tuned[kernel.kernel] = next(p for p in draw.sample(space, len(space)) if fits(kernel, p))
    said: list[str] = []
    library = tmp_path / f"tuned{host_target().suffix}"
    compile_model(
        folder, host_target(), library,
        options=SMALL, cached=False, tuned=tuned, progress=said.append,
    )  # fmt: skip
    shipped = Compiled(folder, folder / f"model{host_target().suffix}")
    before, after = read_manifest(shipped.library), read_manifest(library)
    assert {k.schedule for k in before.kernels} != {k.schedule for k in after.kernels}
    assert any(" of them tuned" in text and " 0 of them" not in text for text in said)
    prompt = np.random.default_rng(0).integers(0, before.model.vocab_size, 19).tolist()
    logits = [
        all_logits(made.load(), prompt, [16, 2, 1], [0, 1])
        for made in (shipped, Compiled(folder, library))
    ]
    assert isfinite(float(np.abs(logits[0]).max()))
    assert logits[0].tobytes() == logits[1].tobytes()


def test_a_plan_that_does_not_fit_is_named(
    kernels: list[Progress], folder: Path, tmp_path: Path
) -> None:
    kernel, plan = unfit(kernels)
    output = tmp_path / "model.so"
    with pytest.raises(ScheduleError, match="--no-tuned"):
        compile_model(
            folder, host_target(), output, options=SMALL, cached=False, tuned={kernel.kernel: plan}
        )
    assert not output.exists()


def present(kind: str) -> bool:
    try:
        parse_device(kind)
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("spec", "why"), [("metal", "missing|Apple"), ("cpu:aarch64-macos", "tune there")]
)
def test_targets_that_are_not_measured(folder: Path, spec: str, why: str) -> None:
    target = parse_target(spec)
    if present(target.kind) if target.group_threads else is_of_host(target):
        pytest.skip("this machine runs it")
    with pytest.raises((UsageError, Unavailable), match=why):
        kernels_of(folder, parse_target(spec))


@pytest.mark.parametrize(
    "words",
    [[], ["--trials", "3"], ["M", "--trials", "0"], ["M", "--minutes", "0"],
     ["M", "--minutes", "nan"], ["M", "--trials", "1", "--minutes", "1"], ["--import", "no.json"],
     ["--export", "p.json", "--activations", "i8"], ["M", "--overrides", "tokens=3"],
     ["M", "--activations", "i8"]],  # a model of f32, which has no such products
)  # fmt: skip
def test_commands_that_make_no_sense(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = ["--database", str(tmp_path / "plans.sqlite")]
    assert main(["tune", *(str(folder) if w == "M" else w for w in words), *database]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command(
    folder: Path,
    tmp_path: Path,
    faked: Faked,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Workers, "measure", lambda self, *args: faked.measure(*args))
    files = {n: str(tmp_path / n) for n in ("plans.sqlite", "plans.json", "page.html")}
    words = [str(folder), "--database", files["plans.sqlite"], "--trials", "2"]
    words += ["--export", files["plans.json"], "--report", files["page.html"]]
    assert main(["tune", *words]) == 0
    told = capsys.readouterr()
    assert "times as fast" in told.out
    assert "<svg" in Path(files["page.html"]).read_text()
    other = ["--database", str(tmp_path / "other.sqlite")]
    assert main(["tune", "--import", files["plans.json"], *other]) == 0
    assert "took" in capsys.readouterr().err


def test_flags_shape_the_kernels_as_those_of_compile_do(
    kernels: list[Progress],
    folder: Path,
    tmp_path: Path,
    faked: Faked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Workers, "measure", lambda self, *args: faked.measure(*args))
    flags = {"small": ["--overrides", "prefill_chunk_size=16;max_batch_size=2"], "usual": []}
    found = {}
    for name, words in flags.items():
        path = tmp_path / f"{name}.sqlite"
        words = [str(folder), "--database", str(path), "--trials", "2", *words]
        assert main(["tune", *words]) == 0
        found[name] = set(Database(path).best(here(host_target())))
    assert found["small"] == {kernel.kernel for kernel in kernels}
    assert found["usual"] != found["small"]
