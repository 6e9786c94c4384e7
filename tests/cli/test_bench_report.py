"""What `sterna bench` finds: as JSON and back, against a baseline, as text and as a page."""

import json
import math

import pytest

from sterna.base.errors import UsageError
from sterna.cli.bench_document import document
from sterna.cli.bench_report import (
    QUANTILES,
    BenchReport,
    Metric,
    PhaseReport,
    compare,
    read,
    to_json,
)
from sterna.inspection.page import to_page
from sterna.inspection.text import to_text

PHASE = PhaseReport(
    name="pp8",
    tokens=8,
    context=0,
    seconds=0.5,
    bytes=1000,
    flops=4000,
    bytes_per_s=2000.0,
    flops_per_s=8000.0,
    copy_bytes_per_s=4000.0,
    peak_flops_per_s=80000.0,
)


def speed(value, name="pp8"):
    samples = (value - 1, value, value + 1)
    return Metric(name=name, unit="tokens/s", better="higher", value=value, samples=samples)


def delay(value):
    return Metric(name="first token p50", unit="s", better="lower", value=value)


def report(*metrics, **changes):
    given = {"kind": "rates", "subject": "M", "settings": {"threads": 2, "prompts": [8]}}
    return BenchReport(metrics=metrics, **{**given, **changes})


def load_report():
    quantiles = {"first token": tuple(0.001 * (i + 1) for i in range(QUANTILES))}
    return report(
        delay(0.05),
        Metric(name="failed", unit="requests", better="lower", value=0),
        kind="load",
        quantiles=quantiles,
    )


def test_json_and_back(tmp_path):
    path = tmp_path / "report.json"
    for found in (report(speed(10.0), phases=(PHASE,)), load_report()):
        path.write_bytes(to_json(found))
        assert read(path) == found
        assert json.loads(path.read_text())["format"] == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 10**6,
        b"\xff",
        to_json(report(speed(1.0))).replace(b'"format": 1', b'"format": 2'),
        to_json(report(speed(1.0))).replace(b'"sterna"', b'"other"'),
        to_json(report(speed(1.0))).replace(b'"higher"', b'"up"'),
        to_json(report(speed(1.0)))[:-20],
    ],
)
def test_a_file_that_is_no_report(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no report of `sterna bench`"):
        read(path)


def test_files_that_are_not_there_or_too_large(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="bytes, possible are"):
        read(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("metric", "before", "share"),
    [
        (speed(50.0), speed(100.0), 1.0),
        (speed(200.0), speed(100.0), -0.5),
        (speed(0.0), speed(100.0), math.inf),
        (delay(1.5), delay(1.0), 0.5),
        (delay(0.5), delay(1.0), -0.5),
        (delay(0.0), delay(0.0), 0.0),
        (delay(0.1), delay(0.0), math.inf),
        (delay(float("nan")), delay(1.0), float("nan")),
    ],
)
def test_worse_is_positive(metric, before, share):
    (change,) = compare(report(metric), report(before))
    assert change.share == pytest.approx(share, nan_ok=True)


@pytest.mark.parametrize(
    ("before", "word"),
    [
        (report(speed(1.0), settings={"threads": 1, "prompts": [8]}), "threads was 1 and is 2"),
        (report(speed(1.0), settings={"threads": 2, "prompts": [8], "x": 1}), "x was 1"),
        (report(speed(1.0), kind="load"), "kind was 'load'"),
        (report(speed(1.0, "tg8")), "has no pp8"),
    ],
)
def test_only_like_is_compared_with_like(before, word):
    with pytest.raises(UsageError, match=word):
        compare(report(speed(1.0)), before)


def test_as_text():
    found = report(speed(90.0), phases=(PHASE,))
    changes = compare(found, report(speed(100.0)))
    text = to_text(document(found, changes, 0.05, {"status 503": 3}))
    assert "threads 2, prompts 8" in text
    assert "pp8      90.00  1.00        3" in text
    assert "50.0%" in text  # of copying
    assert "10.0%" in text  # of multiplying
    assert "100.00 tokens/s  90.00 tokens/s  11.1% worse: REGRESSION" in text
    assert "status 503         3" in text
    assert "REGRESSION" not in to_text(document(found, changes, 0.2, {}))


def test_latencies_as_text():
    text = to_text(document(load_report(), (), 0.1, {}))
    assert "first token  51 ms  96 ms  100 ms   101 ms" in text
    assert "failed  0 requests" in text


def test_as_a_page():
    same = {"first token": (0.5,) * QUANTILES}
    for found in (
        report(speed(90.0), speed(0.0, "tg8"), phases=(PHASE,)),
        load_report(),
        report(delay(0.5), kind="load", quantiles=same),
    ):
        page = to_page(document(found, (), 0.1, {}))
        assert "<svg" in page
        assert "nan" not in page
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-eq", "")
