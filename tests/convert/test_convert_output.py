"""The output folder: two commands in either order, never another model, never half a model."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from source_folder import REPO, Make, contents, edit_config

from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.mlc import check_md5, read_mlc_folder
from sterna.checkpoint.model_folder import open_model
from sterna.convert import ChatOptions, convert_weight, gen_config

Q4 = "q4f16_1"


def test_either_order_gives_the_same_folder(make: Make) -> None:
    source = make()
    first, second = source.with_name("A"), source.with_name("B")
    convert_weight(source, first, quantization=Q4)
    gen_config(source, first, quantization=Q4)
    gen_config(source, second, quantization=Q4)
    convert_weight(source, second, quantization=Q4)
    assert contents(first) == contents(second)
    assert len(open_model(first).tensors) == len(open_model(second).tensors) > 0


def test_half_a_folder_says_what_is_missing(make: Make) -> None:
    source = make()
    convert_weight(source, source.with_name("W"), quantization=Q4)
    with pytest.raises(CheckpointError, match="gen_config"):
        open_model(source.with_name("W"))
    gen_config(source, source.with_name("C"), quantization=Q4)
    with pytest.raises(CheckpointError, match="convert_weight"):
        open_model(source.with_name("C"))
    model = open_model(source.with_name("C"), weights=False)
    assert model.tensors == {}
    assert model.config["hidden_size"] == 64


def test_repeating_one_command_keeps_the_other_part(make: Make) -> None:
    source, output = make("mistral"), make("mistral", "unused").with_name("OUT")
    options = ChatOptions(sliding_window_size=32, attention_sink_size=2)
    gen_config(source, output, quantization=Q4, options=options)
    convert_weight(source, output, quantization=Q4)
    before = contents(output)
    convert_weight(source, output, quantization=Q4)
    assert contents(output) == before
    gen_config(source, output, quantization=Q4, options=options)
    assert contents(output) == before
    gen_config(source, output, quantization=Q4)
    assert open_model(output).fingerprint != json.loads(before["sterna.json"])["fingerprint"]
    assert (output / "params_shard_0.bin").read_bytes() == before["params_shard_0.bin"]


def test_stale_tokenizer_files_go(make: Make) -> None:
    source = make()
    output = source.with_name("OUT")
    gen_config(source, output, quantization=Q4)
    (source / "special_tokens_map.json").unlink()
    (output / "notes.md").write_text("mine")
    gen_config(source, output, quantization=Q4)
    assert not (output / "special_tokens_map.json").exists()
    assert (output / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("command", [convert_weight, gen_config])
def test_another_model_is_refused(make: Make, command: object) -> None:
    source = make()
    output = source.with_name("OUT")
    command(source, output, quantization=Q4)
    before = contents(output)
    with pytest.raises(UsageError, match=r"another model.*quantization"):
        command(source, output, quantization="q0f16")
    other = make(tiny.VARIANTS["llama2-gqa"] | {"rope_theta": 5e5}, "OTHER")
    with pytest.raises(UsageError, match=r"another model.*rope_theta"):
        command(other, output, quantization=Q4)
    assert contents(output) == before


def test_the_two_commands_must_agree(make: Make) -> None:
    source = make()
    output = source.with_name("OUT")
    convert_weight(source, output, quantization=Q4)
    with pytest.raises(UsageError, match="another model"):
        gen_config(source, output, quantization="q4f32_1")


@pytest.mark.parametrize("command", [convert_weight, gen_config])
def test_folders_that_are_not_ours(make: Make, tmp_path: Path, command: object) -> None:
    source = make()
    foreign = tmp_path / "mlc"
    foreign.mkdir()
    (foreign / "mlc-chat-config.json").write_text("{}")
    with pytest.raises(UsageError, match="not converted by Sterna"):
        command(source, foreign, quantization=Q4)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        command(source, home, quantization=Q4)
    with pytest.raises(UsageError, match="is a file"):
        command(source, home / "thesis.tex", quantization=Q4)
    assert (home / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    command(source, tmp_path / "empty", quantization=Q4)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ('{"format": 99}', "format 99"), ('{"format": 1}', "another model")],
)
def test_damaged_sterna_json(make: Make, text: str, words: str) -> None:
    source = make()
    output = source.with_name("OUT")
    gen_config(source, output, quantization=Q4)
    (output / "sterna.json").write_text(text)
    with pytest.raises((CheckpointError, UsageError), match=words):
        convert_weight(source, output, quantization=Q4)


class FullDisk:
    """Stands in for fsync: the disk is full at the n-th call."""

    def __init__(self, calls_left: int) -> None:
        self.calls_left = calls_left

    def __call__(self, handle: int) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", [convert_weight, gen_config])
@pytest.mark.parametrize("calls_left", [0, 1, 2])
def test_full_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch, command: object, calls_left: int
) -> None:
    source = make()
    output = source.with_name("OUT")
    gen_config(source, output, quantization=Q4)
    convert_weight(source, output, quantization=Q4)
    before = contents(output)
    for target in (output, source.with_name("NEW")):
        monkeypatch.setattr(os, "fsync", FullDisk(calls_left))
        with pytest.raises(CheckpointError, match=r"disk is full.*unchanged"):
            command(source, target, quantization=Q4)
        monkeypatch.undo()
    assert contents(output) == before
    assert sorted(path.name for path in source.parent.iterdir()) == ["OUT", "SRC"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sterna.convert import convert_weight, gen_config

source, output, quantization, command, when = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
if when == "midway":
    hook = {"progress": lambda step: die() if step.weights_done == 9 else None}
else:
    hook, rename, calls = {}, os.rename, []
    def counted(*args):
        calls.append(args)
        when == f"before rename {len(calls)}" and die()
        rename(*args)
        when == f"after rename {len(calls)}" and die()
    os.rename = counted
if when == "during fsync":
    os.fsync = lambda handle: die()
globals()[command](Path(source), Path(output), quantization=quantization, **hook)
"""
MOMENTS = ("during fsync", "before rename 1", "after rename 1", "after rename 2")


@pytest.mark.parametrize(
    ("command", "when"),
    [("convert_weight", "midway")]
    + [(command, when) for command in ("convert_weight", "gen_config") for when in MOMENTS],
)
def test_killed(make: Make, command: str, when: str) -> None:
    """The model is the old one, whole, or the new one, whole; and the next run works."""
    source = make()
    output = source.with_name("OUT")
    gen_config(source, output, quantization=Q4, options=ChatOptions(max_batch_size=3))
    convert_weight(source, output, quantization=Q4)
    old = contents(output)
    (source / "tokenizer_config.json").write_text('{"eos_token": null}')  # a new part to write
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(output), Q4, command, when],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    model = open_model(output)
    check_md5(read_mlc_folder(output))
    new = command == "gen_config" and when == "after rename 2"
    assert (model.chat_config["model_config"]["max_batch_size"] == 3) is not new
    assert (contents(output) == old) is not new
    globals()[command](source, output, quantization=Q4)
    assert sorted(path.name for path in source.parent.iterdir()) == ["OUT", "SRC"]


def test_open_model_reads_the_source_config(make: Make) -> None:
    source = make("mistral")
    output = source.with_name("OUT")
    options = ChatOptions(sliding_window_size=32, attention_sink_size=2)
    gen_config(source, output, quantization=Q4, options=options)
    model = open_model(output, weights=False)
    original = json.loads((source / "config.json").read_text())
    assert model.config == {**original, "sliding_window": 32, "attention_sink_size": 2}
    assert (model.model_type, model.quantization) == ("mistral", Q4)


def test_open_model_rebuilds_the_config_of_an_mlc_folder(shared: Path) -> None:
    folder = shared / "mlc-format" / "Llama-3-8B-Instruct-q4f16_1"
    model = open_model(folder, weights=False)
    assert (model.model_type, model.quantization) == ("llama", Q4)
    assert model.config == {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rms_norm_eps": 1e-05,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    with pytest.raises(CheckpointError, match="params_shard_0"):
        open_model(folder)
    with pytest.raises(CheckpointError, match="model_type"):
        open_model(shared / "mlc-format" / "RedPajama-3B-q4f16_0-2023", weights=False)


def test_open_model_refuses_what_is_none(tmp_path: Path, make: Make) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no converted model.*convert_weight"):
        open_model(make())


def test_a_source_may_change_its_remarks_only_with_a_new_folder(make: Make) -> None:
    source = make()
    output = source.with_name("OUT")
    convert_weight(source, output, quantization=Q4)
    edit_config(source, eos_token_id=[2, 3])
    with pytest.raises(UsageError, match="eos_token_id"):
        gen_config(source, output, quantization=Q4)
