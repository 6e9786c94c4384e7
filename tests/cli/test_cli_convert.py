"""`convert_weight`, `gen_config` and `compile`: flags in, the right calls and files out."""

import json

import pytest
from tiny_source import write_source

from sterna import compiler
from sterna.base.version import __version__
from sterna.checkpoint.model_folder import open_model
from sterna.cli.main import main


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "M")


@pytest.fixture
def converted(source, tmp_path, capsys):
    folder = tmp_path / "dist"
    flags = ["--source", str(source), "--quantization", "q4f16_1", "--output", str(folder)]
    assert main(["convert_weight", "--model-type", "llama", *flags]) == 0
    assert main(["gen_config", "--model-type", "llama", *flags]) == 0
    capsys.readouterr()
    return folder


def test_both_steps_make_a_model_folder(converted):
    model = open_model(converted)
    assert (model.model_type, model.quantization) == ("llama", "q4f16_1")
    assert json.loads((converted / "sterna.json").read_text())["sterna"] == __version__


def test_convert_weight_prints_what_it_cost(source, tmp_path, capsys):
    words = ["convert-weight", str(source), "-o", str(tmp_path / "new")]
    assert main([*words, "--quantization", "q8f16_1"]) == 0
    captured = capsys.readouterr()
    assert "llama in q8f16_1: error against the source" in captured.out
    assert "SQNR" in captured.out
    assert f"weights are in {tmp_path / 'new'}" in captured.err


def test_the_second_step_follows_the_first(source, tmp_path):
    output = tmp_path / "new"
    words = [str(source), "-o", str(output)]
    assert main(["convert_weight", *words, "--quantization", "q8f16_1"]) == 0
    assert main(["gen_config", *words, "--context-window-size", "32"]) == 0
    model = open_model(output)
    assert model.quantization == "q8f16_1"
    assert model.chat_config["context_window_size"] == 32


@pytest.mark.parametrize("verb", ["convert_weight", "gen_config"])
@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ([], 2, "--source is missing"),
        (["SRC"], 2, "--output is missing"),
        (["SRC", "--source", "OTHER", "-o", "NEW"], 2, "leave one of them out"),
        (["/nowhere", "-o", "NEW"], 2, "there is no folder /nowhere"),
        (["/nowhere.gguf", "-o", "NEW"], 2, "there is no file /nowhere.gguf"),
        (["SRC", "-o", "NEW", "--quantization", "q5f16_1"], 2, "did you mean"),
        (["SRC", "-o", "NEW", "--model-type", "gpt9"], 2, "model type 'gpt9' is not known"),
        (["SRC", "-o", "SRC", "--quantization", "q0f16"], 2, "holds other things"),
    ],
)
def test_refusals_write_nothing(verb, flags, code, sentence, source, tmp_path, capsys):
    before = sorted(source.iterdir())
    new = tmp_path / "new"
    names = {"SRC": str(source), "NEW": str(new)}
    assert main([verb, *(names.get(flag, flag) for flag in flags)]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.splitlines()[-1].startswith("sterna: ")
    assert not new.exists()
    assert sorted(source.iterdir()) == before


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the compiler; what it was called with."""
    found = []

    def compile_model(folder, target, output, **settings):
        settings.pop("progress")("lowering")
        found.append((folder, target.spec, settings))
        output.write_bytes(b"x" * 2048)
        return output

    monkeypatch.setattr(compiler, "compile_model", compile_model)
    return found


def test_compile_hands_everything_on(converted, tmp_path, calls, capsys):
    library = tmp_path / "M.so"
    words = ["--model", str(converted), "--output", str(library), "--quantization", "q4f16_1"]
    words += ["--target", "cpu:aarch64-linux", "--debug-dump", str(tmp_path / "dump")]
    words += ["--overrides", "context_window_size=64; prefill_chunk_size=16"]
    assert main(["compile", *words]) == 0
    ((folder, target, settings),) = calls
    assert (folder, target) == (converted, "cpu:aarch64-linux")
    assert settings["debug_dump"] == tmp_path / "dump"
    assert settings["options"].context_window_size == 64
    assert settings["options"].prefill_chunk_size == 16
    assert settings["options"].max_batch_size is None
    captured = capsys.readouterr()
    assert captured.out == f"{library} (2.0 KiB, cpu:aarch64-linux)\n"
    assert "compile: lowering" in captured.err


def test_compile_takes_the_configuration_file_for_its_folder(converted, tmp_path, calls):
    config = converted / "mlc-chat-config.json"
    assert main(["compile", str(config), "-o", str(tmp_path / "M.so")]) == 0
    assert calls[0][0] == converted


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["DIST"], "--output is missing"),
        (["-o", "NEW"], "--model is missing"),
        (["/nowhere", "-o", "NEW"], "there is no folder /nowhere"),
        (["SRC", "-o", "NEW"], "is a Hugging Face folder, not a converted model"),
        (["DIST", "-o", "DIST"], "is a folder, and cpu:"),
        (["DIST", "-o", "NEW", "--quantization", "q0f16"], "is quantized as q4f16_1"),
        (["DIST", "-o", "NEW", "--target", "tpu"], "target 'tpu' is not known"),
        (["DIST", "-o", "NEW", "--kv-dtype", "q4"], "invalid choice: 'q4'"),
        (["DIST", "-o", "NEW", "--overrides", "window=1"], "has no 'window'"),
        (["DIST", "-o", "NEW", "--overrides", "max_batch_size"], "name=number"),
        (["DIST", "-o", "NEW", "--overrides", "max_batch_size=1.5"], "'1.5', not an integer"),
    ],
)
def test_what_cannot_be_compiled(flags, sentence, source, converted, tmp_path, calls, capsys):
    names = {"SRC": str(source), "DIST": str(converted), "NEW": str(tmp_path / "new.so")}
    assert main(["compile", *(names.get(flag, flag) for flag in flags)]) == 2
    assert sentence in capsys.readouterr().err
    assert calls == []
    assert not (tmp_path / "new.so").exists()
