"""pp and tg rates, measured over the null device, and what a step costs by a library's formulas."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inspection"))

from null_model import engine as null_engine
from null_model import manifest
from sample_library import PAGE, WINDOW, sample

from sterna.base.errors import RequestError
from sterna.cli import bench, bench_report
from sterna.cli.bench_rates import RateOptions, phases, rates
from sterna.cli.main import main
from sterna.engine.limits import Limits
from sterna.inspection.costs import step_cost
from sterna.inspection.peaks import Peaks

PEAKS = Peaks(bandwidth=1e10, flops=1e11)

PHASE = bench_report.PhaseReport(
    name="pp16",
    tokens=16,
    context=0,
    seconds=0.5,
    bytes=1000,
    flops=4000,
    bytes_per_s=2000.0,
    flops_per_s=8000.0,
    copy_bytes_per_s=1e10,
    peak_flops_per_s=1e11,
)


def silent(test):
    pass


@pytest.fixture
def engine():
    with null_engine(prefix_cache=False) as made:
        yield made


@pytest.fixture
def quick(monkeypatch):
    """The command measures the null device, on a machine of round numbers."""
    monkeypatch.setattr(bench, "open_engine", lambda args: null_engine(prefix_cache=False))
    monkeypatch.setattr("sterna.inspection.peaks.measure_peaks", lambda: PEAKS)
    return ["bench", "--prompt-tokens", "16", "--generate-tokens", "4", "--repetitions", "2",
            "--no-kernels"]  # fmt: skip


def test_every_size_is_measured(engine):
    told = []
    options = RateOptions(prompts=(8, 100), answers=(4,), parallel=(1, 3), repetitions=2)
    before = engine.metrics()
    found = rates(engine, options, told.append)
    after = engine.metrics()
    assert [metric.name for metric in found] == told == ["pp8", "pp100", "tg4", "tg4x3"]
    assert all(metric.value > 0 and len(metric.samples) == 2 for metric in found)
    runs = 3  # one of them warms up
    written = after["completion_tokens"] - before["completion_tokens"]
    assert written == runs * (1 + 1 + 4 + 3 * 4)


def test_prompts_from_a_cache_are_no_measurement():
    with null_engine(prefix_cache=True) as engine:
        options = RateOptions(prompts=(4,), answers=(), repetitions=60)
        with pytest.raises(RequestError, match="came from the prefix cache"):
            rates(engine, options, silent)


def test_what_the_window_cannot_hold_is_refused(engine):
    with pytest.raises(RequestError, match="the context window is 256 tokens"):
        rates(engine, RateOptions(prompts=(256,)), silent)


def test_phases_set_bytes_and_operations_against_the_machine():
    library = sample()
    entries = {entry.name: entry for entry in library.entries}
    metrics = [
        bench_report.Metric(name=name, unit="tokens/s", better="higher", value=value)
        for name, value in (
            ("pp100", 50.0),
            ("tg8", 4.0),
            ("tg8x4", 8.0),
            ("tg8x5", 9.0),
            ("tg1", 1.0),
        )
    ]
    limits = Limits(max_sequences=4, chunk=64, num_pages=64, page_size=PAGE, window=WINDOW)
    prompt, answer, four = phases(library, limits, metrics, PEAKS)
    spans = [step_cost(library, entries["prefill"], *span) for span in ((0, 64), (64, 36))]
    assert (prompt.name, prompt.tokens, prompt.seconds) == ("pp100", 100, 2.0)
    assert prompt.bytes == sum(cost.bytes for cost in spans)
    assert prompt.flops_per_s == sum(cost.flops for cost in spans) / 2
    one = step_cost(library, entries["decode"], 4, 1)
    assert (answer.name, answer.context, answer.seconds) == ("tg8", 4, 0.25)
    assert answer.of_copy == one.bytes / 0.25 / 1e10
    assert answer.of_peak == one.flops / 0.25 / 1e11
    together = step_cost(library, entries["decode"], 4, 1, rows=4, sequences=4)
    assert (four.name, four.tokens, four.context, four.seconds) == ("tg8x4", 4, 4, 0.5)
    assert (four.bytes, four.flops) == (together.bytes, together.flops)
    assert one.flops < together.flops
    assert one.bytes < together.bytes < 4 * one.bytes


def test_the_command(quick, tmp_path, capsys):
    now, page = tmp_path / "now.json", tmp_path / "page.html"
    assert main([*quick, "--json", str(now), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "pp16" in out
    assert "tg4" in out
    assert "<svg" in page.read_text()
    found = bench_report.read(now)
    assert found.settings["target"] == manifest().target
    assert found.settings["quantization"] == manifest().model.quantization
    assert found.settings["prompts"] == [16]


@pytest.mark.parametrize(("flags", "count"), [([], 2), (["--speculative", "off"], 2),
                                              (["--speculative", "ngram"], 0)])  # fmt: skip
def test_steps_that_guess_are_not_set_against_the_machine(
    flags, count, quick, monkeypatch, tmp_path
):
    def told(manifest, limits, metrics, peaks):
        assert peaks == PEAKS
        return (PHASE,) * 2

    monkeypatch.setattr("sterna.cli.bench_rates.phases", told)
    now = tmp_path / "now.json"
    assert main([*quick, *flags, "--json", str(now)]) == 0
    assert len(bench_report.read(now).phases) == count


def test_json_on_stdout_is_all_of_stdout(quick, capsys, tmp_path):
    assert main([*quick, "--json", "-"]) == 0
    (tmp_path / "now.json").write_text(capsys.readouterr().out)
    assert bench_report.read(tmp_path / "now.json").kind == "rates"


@pytest.mark.parametrize(("factor", "status"), [(1e-9, 0), (1e9, 1)])
def test_a_baseline_decides_the_exit_status(factor, status, quick, tmp_path, capsys):
    path = tmp_path / "before.json"
    assert main([*quick, "--json", str(path)]) == 0
    before = bench_report.read(path)
    metrics = [
        bench_report.Metric(name=m.name, unit=m.unit, better=m.better, value=m.value * factor)
        for m in before.metrics
    ]
    path.write_bytes(
        bench_report.to_json(
            bench_report.BenchReport(
                kind="rates", subject="M", settings=before.settings, metrics=tuple(metrics)
            )
        )
    )
    capsys.readouterr()
    assert main([*quick, "--baseline", str(path)]) == status
    captured = capsys.readouterr()
    assert ("REGRESSION" in captured.out) == bool(status)
    assert ("worse than the baseline by more than 10%: pp16, tg4" in captured.err) == bool(status)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--concurrency", "4"], "--concurrency is about a server"),
        (["--prompt-tokens", "0"], "is no list of numbers of at least 1"),
        (["--prompt-tokens", "8,x"], "is no list of numbers of at least 1"),
        (["--repetitions", "0"], "--repetitions is 0"),
        (["--tolerance", "-1"], "--tolerance is -1"),
        (["--tolerance", "nan"], "--tolerance is nan"),
        (["--baseline", "none.json"], "none.json cannot be read"),
        (["http://localhost", "--parallel", "2"], "--parallel is about a model in this process"),
        (["http://localhost", "--threads", "2"], "--threads is about a model in this process"),
        (["http://localhost", "--device", "cpu"], "--device is about a model in this process"),
        (["http://localhost", "--prompt-tokens", "8,9"], "takes one number for a server"),
        (["http://localhost", "--requests", "0"], "--requests is 0"),
        (["http://localhost", "--rate", "inf"], "--rate is inf"),
        (["http://localhost", "--timeout", "0"], "--timeout is 0.0"),
        (["http://localhost:99999"], "is no address of a server"),
        (["http://"], "is no address of a server"),
        (["http://localhost", "--api-key", "schlüssel"], "cannot be sent in a header"),
    ],
)
def test_options_that_make_no_sense(flags, sentence, quick, capsys):
    assert main([*quick[:1], *flags]) == 2
    assert sentence in capsys.readouterr().err
