"""The page: one file that asks for nothing, well-formed, with names of strangers escaped."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import msgspec
import pytest
from sample_library import sample, write

from sterna import inspection
from sterna.base.artifact import Buffer, Launch, Repeat
from sterna.inspection.charts import arena_map, roofline
from sterna.inspection.costs import step_costs
from sterna.inspection.peaks import Peaks, measure_peaks

VOID = {"meta"}


class Balance(HTMLParser):
    """Every element that is opened is closed, in order; attributes that load are noted."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.loads = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return inspection.html(write(tmp_path_factory.mktemp("lib") / "M.so"))


def charts(page):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def texts(svg, tag="text"):
    return [element.text for element in svg.iter() if element.tag.endswith("}" + tag)]


def test_it_needs_nothing_but_itself(page):
    found = Balance()
    found.feed(page)
    assert found.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert all(target.startswith("#") for target in found.loads)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_it_has_a_roofline_a_memory_chart_and_what_the_text_has(page):
    roof, memory, arena, weights = charts(page)
    assert {"FLOP/byte", "FLOP/s", "prefill", "decode"} <= set(texts(roof))
    assert {"0 tokens", "256 tokens", "weights", "KV cache"} <= set(texts(memory))
    assert {"x", "qkv"} <= set(texts(arena))
    assert {"embedding", "attention", "mlp", "norm", "head"} <= set(texts(weights))
    assert "split(acc, n, no, ni, 8)" in page
    assert "repeat i in 0..2:" in page


def test_kernels_stand_at_their_bound():
    peaks = Peaks(bandwidth=1e10, flops=1e11)
    svg = ET.fromstring(roofline(step_costs(sample(), 100), peaks))
    bounds = [t for t in texts(svg, "title") if "FLOP/byte" in t]
    assert len(bounds) == 8  # embedding does no arithmetic, in prefill and in decode
    intensity = 2 * 192 * 64 / (192 * 36 + 1024)
    found = next(t for t in bounds if t.startswith("7 decode qkv_proj"))
    assert f"{intensity:.2f} FLOP/byte, at most {intensity * 10:.1f} GFLOP/s" in found
    assert any("at most 100 GFLOP/s" in t for t in bounds)


def test_what_a_repeat_reads_each_time_lives_to_its_end():
    steps = (
        Launch("a", ("early", "once")),
        Repeat("i", 3, (Launch("b", ("early", "own")), Launch("c", ("own",)), Launch("d", ()))),
        Launch("e", ("late",)),
    )
    arena = tuple(Buffer(n, "f32", ("1",)) for n in ("early", "once", "own", "late", "unused"))
    entry = msgspec.structs.replace(sample().entries[0], steps=steps, arena=arena)
    titles = texts(ET.fromstring(arena_map(entry)), "title")[1:]
    assert [(t.split(":")[0], t.split()[-1]) for t in titles] == [
        ("early", "0-3"), ("once", "0-0"), ("own", "1-2"), ("late", "4-4"),
    ]  # fmt: skip


def test_names_from_a_file_cannot_become_markup(tmp_path):
    bad = "</title><script>alert(1)</script>\n'\""
    manifest = sample(target=bad)
    kernels = tuple(msgspec.structs.replace(k, op=bad, schedule=bad) for k in manifest.kernels)
    model = msgspec.structs.replace(manifest.model, model_type=bad)
    entries = tuple(
        msgspec.structs.replace(
            e, name=bad, arena=(msgspec.structs.replace(e.arena[0], dtype="f32"), *e.arena[1:])
        )
        for e in manifest.entries
    )
    manifest = msgspec.structs.replace(manifest, kernels=kernels, model=model, entries=entries)
    page = inspection.html(write(tmp_path / "M.so", manifest))
    found = Balance()
    found.feed(page)
    assert "script" not in found.tags
    assert found.open == []
    assert all(charts(page))


def test_peaks_are_positive_numbers():
    peaks = measure_peaks()
    assert peaks.bandwidth > 1e6
    assert peaks.flops > 1e6
    assert peaks.seconds(peaks.flops, 0) == pytest.approx(1)
    assert peaks.seconds(peaks.flops, 2 * peaks.bandwidth) == pytest.approx(2)
