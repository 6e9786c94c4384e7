"""`sterna compile --activations i8` says what that costs in quality, or why it does not."""

import re

import pytest
from tiny_source import write_source

from sterna import jit
from sterna.cli import compile_effect
from sterna.cli.main import main


@pytest.fixture
def folder(tmp_path):
    return jit.model_folder(write_source(tmp_path / "M"), "q4f16_1")


def compiled(folder, tmp_path, *flags):
    library = tmp_path / "M.so"
    return main(["compile", str(folder), "-o", str(library), "--activations", "i8", *flags])


def test_the_effect_is_told(folder, tmp_path, capsys, monkeypatch):
    texts = [[7 * i % 160 for i in range(40)], [11 * i % 160 for i in range(3, 60)]]
    monkeypatch.setattr(compile_effect, "prompts", lambda *_: texts)
    assert compiled(folder, tmp_path) == 0
    told = capsys.readouterr().err
    found = re.search(r"perplexity (\S+) with usual activations, (\S+) with these", told)
    assert found is not None, told
    before, after = map(float, found.groups())
    assert before > 1
    assert after == pytest.approx(before, rel=0.05)
    divergence = re.search(r"KL divergence (\S+) nats", told)
    assert divergence is not None, told
    assert 0 < float(divergence[1]) < 0.1


def test_what_has_no_effect_to_tell(folder, tmp_path, capsys, monkeypatch):
    assert compiled(folder, tmp_path, "--target", "cpu:x86-64-v3-windows") == 0
    assert "was not measured: programs for cpu:x86-64-v3-windows" in capsys.readouterr().err
    assert compiled(folder, tmp_path) == 0  # the demo's tokenizer has more words than this model
    assert "was not measured: the tokenizer gives the id" in capsys.readouterr().err


def test_a_large_model_is_measured_where_that_is_asked_for(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compile_effect, "_MOST_BYTES", 100)
    monkeypatch.setattr(compile_effect, "prompts", lambda *_: [[7 * i % 160 for i in range(9)]])
    assert compiled(folder, tmp_path) == 0
    told = "was not measured: the model is large; compile with --measure to do it"
    assert told in capsys.readouterr().err
    assert compiled(folder, tmp_path, "--measure") == 0
    assert "KL divergence" in capsys.readouterr().err
    monkeypatch.setattr(compile_effect, "_MOST_BYTES", 1 << 40)
    assert compiled(folder, tmp_path, "--no-measure") == 0
    assert "activations" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--activations", "i16"), "it goes with --activations i8 or bf16 and a library"),
        (("--target", "cpu:x86-64-v3-windows"), "programs for cpu:x86-64-v3-windows are not run"),
        (("--target", "opencl"), "programs for opencl are not run for it here"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_is_compiled(
    folder, tmp_path, capsys, flags, told
):
    assert compiled(folder, tmp_path, "--measure", *flags) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "M.so").exists()
