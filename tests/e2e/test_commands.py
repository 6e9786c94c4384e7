"""The commands as a user types them, on the model that ships with Sterna."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from compiled import greedy, greedy_logits
from host_free import run_under_qemu

from sterna import demo
from sterna.base.artifact import Activations, CompileOptions
from sterna.base.errors import Unavailable
from sterna.base.target import host_target, parse_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.compiler import compile_model
from sterna.runtime import cpu, vulkan

SRC = Path(demo.FOLDER).parents[1]
QUESTION = "What is 12 + 30?"

Sterna = Callable[..., subprocess.CompletedProcess]


@dataclass(frozen=True)
class Made:
    folder: Path
    library: Path


@pytest.fixture(scope="module")
def sterna(tmp_path_factory: pytest.TempPathFactory) -> Sterna:
    """Run `sterna WORDS...` in a folder and with a cache of its own."""
    root = tmp_path_factory.mktemp("user")
    settings = {**os.environ, "PYTHONPATH": str(SRC), "STERNA_CACHE": str(root / "cache")}
    settings.pop("STERNA_DEBUG", None)

    def run(*words: object, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "sterna", *map(str, words)]
        done = subprocess.run(
            line, input=stdin, capture_output=True, text=True, env=settings, cwd=root, timeout=300
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def made(sterna: Sterna, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The three steps from a Hugging Face folder to a library."""
    root = tmp_path_factory.mktemp("dist")
    folder, library = root / "demo-q4f16_1", root / f"demo{host_target().suffix}"
    flags = ("--source", demo.FOLDER, "--quantization", "q4f16_1", "--output", folder)
    sterna("convert_weight", *flags)
    sterna("gen_config", *flags)
    told = sterna("compile", "--model", folder, "--target", "cpu", "--output", library)
    assert str(library) in told.stdout
    return Made(folder, library)


def test_generate_prints_one_object(sterna: Sterna, made: Made) -> None:
    words = ("--model-lib", made.library, "--prompt", "Once", "--json")
    settings = ("--max-tokens", 12, "--temperature", 0)
    found = json.loads(sterna("generate", made.folder, *words, *settings).stdout)
    assert found["usage"]["completion_tokens"] == len(found["token_ids"]) <= 12
    assert found["finish_reason"] in ("length", "stop")
    model = cpu.load(made.library, read_mlc_folder(made.folder).tensors, num_pages=8)
    wanted = greedy(model, found["prompt_token_ids"], len(found["token_ids"]))
    assert found["token_ids"] == wanted
    piped = sterna("generate", made.folder, "--model-lib", made.library, *settings, stdin="Once\n")
    assert piped.stdout == found["text"] + "\n"


def test_chat_answers(sterna: Sterna, made: Made) -> None:
    words = ("--model-lib", made.library, "--prompt", QUESTION, "--temperature", 0)
    assert "42" in sterna("chat", made.folder, *words).stdout


def test_chat_with_no_model_is_the_demo(sterna: Sterna) -> None:
    first = sterna("chat", "--prompt", QUESTION)
    assert "42" in first.stdout
    assert "compile" in first.stderr
    again = sterna("chat", "--prompt", QUESTION)
    assert again.stdout == first.stdout
    (told,) = again.stderr.splitlines()  # all was found in the cache
    assert told.startswith("device: cpu was chosen")


def test_inspect_shows_library_and_folder(sterna: Sterna, made: Made) -> None:
    library = sterna("inspect", made.library).stdout
    for word in ("prefill", "decode", "verify", "q4f16_1", host_target().spec):
        assert word in library
    assert "model.layers.0.mlp.down_proj" in sterna("inspect", made.folder).stdout


@pytest.mark.slow
def test_the_demo_says_the_same_on_another_device(sterna: Sterna) -> None:
    try:
        vulkan.open_device().close()
    except Unavailable as error:
        pytest.skip(str(error))
    words = ("--prompt", "The tern flies", "--temperature", 0, "--max-tokens", 24, "--json")
    both = [sterna("generate", *words, "--device", name).stdout for name in ("cpu", "vulkan")]
    ours, theirs = (json.loads(text)["token_ids"] for text in both)
    assert ours == theirs
    assert len(ours) == 24


def test_devices_lists_the_cpu(sterna: Sterna) -> None:
    assert sterna("devices").stdout.startswith("cpu      yes")


def refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """One sentence at the end of stderr, no traceback, nothing on stdout."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    sentences = [line for line in done.stderr.splitlines() if line.startswith("sterna: ")]
    assert sentences == done.stderr.splitlines()[-1:]
    for part in parts:
        assert part in done.stderr


def test_a_library_of_another_scheme_is_refused(sterna: Sterna, made: Made, tmp_path: Path) -> None:
    flags = ("--source", demo.FOLDER, "--quantization", "q8f16_1", "--output", tmp_path / "other")
    sterna("convert_weight", *flags)
    sterna("gen_config", *flags)
    words = (tmp_path / "other", "--model-lib", made.library, "--prompt", "x")
    done = sterna("generate", *words, code=1)
    refused(done, "was compiled for another model", "q4f16_1", "q8f16_1")


def test_a_library_for_another_machine_is_refused(
    sterna: Sterna, made: Made, tmp_path: Path
) -> None:
    foreign = "aarch64" if host_target().spec.startswith("cpu:x86") else "x86_64"
    library = tmp_path / "foreign.so"
    sterna("compile", made.folder, "--target", f"cpu:{foreign}-linux", "-o", library)
    words = (made.folder, "--model-lib", library, "--prompt", "x")
    refused(sterna("generate", *words, code=1), "was compiled for", "compile the model with")


def test_a_context_longer_than_the_models_is_refused(
    sterna: Sterna, made: Made, tmp_path: Path
) -> None:
    output = ("--output", tmp_path / "new")
    flags = ("--source", demo.FOLDER, "--quantization", "q4f16_1", *output)
    done = sterna("gen_config", *flags, "--context-window-size", 1025, code=2)
    refused(done, "1025 is longer than the model's 1024 positions")
    words = (made.folder, *output, "--overrides", "context_window_size=1025")
    refused(sterna("compile", *words, code=2), "1025 is longer than the model's 1024 positions")
    words = (made.folder, "--model-lib", made.library, "--prompt", "x")
    done = sterna("generate", *words, "--context-window-size", 1025, code=1)
    refused(done, "1025", "1024")
    assert not (tmp_path / "new").exists()


def test_a_prompt_longer_than_the_context_is_refused(sterna: Sterna, made: Made) -> None:
    words = (made.folder, "--model-lib", made.library, "--prompt", "word " * 3000)
    refused(sterna("generate", *words, code=1), "1024")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "activations"), [("aarch64", "i16"), ("aarch64-dot", "i8"), ("aarch64-i8mm", "i8")]
)
def test_aarch64_gives_the_bits_of_this_machine(
    level: str, activations: Activations, made: Made, tmp_path: Path
) -> None:
    prompt, count = [5, 300, 17, 801, 44, 99, 512, *range(600, 620)], 8
    options = CompileOptions(prefill_chunk_size=64, max_batch_size=1, activations=activations)
    library = compile_model(made.folder, host_target(), tmp_path / "here", options=options)
    tensors = read_mlc_folder(made.folder).tensors
    model = cpu.load(library, tensors, num_pages=4, threads=1)
    wanted = greedy_logits(model, prompt, count)
    model.close()
    target = parse_target(f"cpu:{level}-linux")
    found = run_under_qemu(made.folder, target, options, prompt, count, tmp_path)
    assert found.argmax(axis=-1).tolist() == wanted.argmax(axis=-1).tolist()
    assert found.tobytes() == wanted.tobytes()
