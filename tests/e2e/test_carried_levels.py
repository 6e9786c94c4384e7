"""One library with programs for several levels of a CPU: the best that runs is picked at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compiled import Compiled, all_logits, build_tiny, tiny

from sterna.base import target
from sterna.base.artifact import CompileOptions
from sterna.base.errors import ArtifactError, Unavailable, UsageError
from sterna.base.target import parse_target
from sterna.compiler import compile_model
from sterna.runtime import host, library
from sterna.tune.session import check_measurable

pytestmark = pytest.mark.skipif(
    parse_target("cpu").triple.partition("-")[0] != "x86_64", reason="this machine is no x86-64"
)
SMALL = CompileOptions(prefill_chunk_size=16, max_batch_size=2)
MULTI = "cpu:x86-64-multi"
LEVELS = parse_target(MULTI).carried
ALONE = (LEVELS[0], LEVELS[1], LEVELS[-1])  # also compiled as libraries of their own


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("levels")
    made = build_tiny(
        root, tiny.VARIANTS["llama2-gqa"], "q4f16_1", prefill_chunk_size=16, max_batch_size=2
    )
    for spec in (MULTI, *ALONE):
        compile_model(made.folder, parse_target(spec), path(made, spec), options=SMALL)
    return made


def path(model: Compiled, spec: str) -> Path:
    return model.folder / f"{spec.partition(':')[2]}.so"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this CPU one that has a level's instructions and no others."""

    def limit(spec: str) -> None:
        features = frozenset(parse_target(spec).features)
        if not features <= (host.cpu_features() or frozenset()):
            pytest.skip(f"this CPU lacks what {spec} needs")
        below = frozenset(parse_target(LEVELS[0]).features)
        monkeypatch.setattr(library, "cpu_features", lambda: features | below)

    return limit


@pytest.mark.parametrize("spec", ALONE)
def test_a_machine_runs_the_best_level_it_has(
    spec: str, model: Compiled, limited: Callable[[str], None]
) -> None:
    limited(spec)
    several, alone = (Compiled(model.folder, path(model, s)) for s in (MULTI, spec))
    assert library.read_manifest(several.library).target == parse_target(spec).spec
    prompt = np.random.default_rng(0).integers(0, 64, 19).tolist()
    logits = [all_logits(m.load(), prompt, [16, 2, 1], [0, 1]) for m in (several, alone)]
    assert np.isfinite(logits[0]).all()
    assert logits[0].tobytes() == logits[1].tobytes()


def test_levels_with_fma_give_the_same_bits(
    model: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of integers are exact, and sums of floats have one order."""
    found = host.cpu_features() or frozenset()
    runs = [spec for spec in LEVELS[1:] if found.issuperset(parse_target(spec).features)]
    if len(runs) < 2:
        pytest.skip("this CPU has one level with FMA at most")
    prompt, logits = np.random.default_rng(1).integers(0, 64, 19).tolist(), set()
    for spec in runs:
        features = frozenset(parse_target(spec).features)
        monkeypatch.setattr(library, "cpu_features", lambda features=features: features)
        several = Compiled(model.folder, path(model, MULTI))
        assert library.read_manifest(several.library).target == parse_target(spec).spec
        logits.add(all_logits(several.load(), prompt, [16, 2, 1], [0, 1]).tobytes())
    assert len(logits) == 1


def test_a_bare_cpu_is_the_best_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in LEVELS:
        features = frozenset(parse_target(spec).features)
        monkeypatch.setattr(target, "cpu_features", lambda features=features: features)
        assert parse_target("cpu").spec == parse_target(spec).spec
    monkeypatch.setattr(target, "cpu_features", lambda: None)
    assert parse_target("cpu").spec == parse_target("cpu:x86_64").spec


def test_a_machine_with_none_of_them_is_told(
    model: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "cpu_features", frozenset)
    with pytest.raises(Unavailable, match="lacks ssse3, sse4_1, popcnt"):
        Compiled(model.folder, path(model, MULTI)).load()


def test_a_library_that_lost_a_program_is_damaged(model: Compiled, tmp_path: Path) -> None:
    data, cut = path(model, MULTI).read_bytes(), tmp_path / "cut.so"
    at = data.rindex(library.MANIFEST_MARK)
    cut.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    with pytest.raises(ArtifactError, match="damaged"):
        library.read_manifest(cut)


def test_a_dump_has_a_folder_for_each(model: Compiled, tmp_path: Path) -> None:
    compile_model(
        model.folder, parse_target(MULTI), tmp_path / "model.so", options=SMALL, debug_dump=tmp_path
    )
    for level in parse_target(MULTI).carried:
        assert (tmp_path / level.replace(":", "-") / "10_library.c").is_file()


def test_tuning_asks_for_one_of_them() -> None:
    with pytest.raises(UsageError, match="tune for one of them"):
        check_measurable(parse_target(MULTI))
