"""The prefix cache on disk: found after a restart or a kill, not believed when damaged."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from null_model import engine, manifest

from sterna.base.errors import RequestError, UsageError
from sterna.engine import prefix_store
from sterna.engine.options import EngineOptions
from sterna.engine.prefix_store import PrefixStore
from sterna.runtime.null import NullExecutable

PROMPT = "over the ice and over the ice again"
ASKED = {"max_tokens": 5, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def ask(folder, prompt=PROMPT, **changes):
    """(token ids, reused prompt tokens, metrics, pages refused) of one engine from start to end."""
    with engine(prefix_cache_dir=str(folder), **changes) as model:
        result = model.completions.create(prompt=prompt, **ASKED)
        model._core.call(model._core.scheduler.check)
        reused = result.usage.prompt_tokens_details.cached_tokens
        return result.choices[0].token_ids, reused, model.metrics(), model._core._store.refused


def files(folder):
    return sorted(path for path in Path(folder).glob("*/*"))


def test_a_restart_finds_it_again(tmp_path):
    first, reused, _, _ = ask(tmp_path)
    assert reused == 0
    again, reused, metrics, _ = ask(tmp_path)
    assert again == first
    assert reused == len(PROMPT) - 1  # the answer filled the page of its last token
    assert metrics["pages_free"] == 512
    assert {path.suffix for path in files(tmp_path)} == {".page"}


def test_pages_that_are_evicted_leave_the_disk(tmp_path):
    small = {"num_pages": 16, "max_num_sequence": 1}
    for start in range(4):
        _, _, metrics, _ = ask(tmp_path, prompt=chr(65 + start) * 40, **small)
    assert metrics["prefix_evictions"] > 0
    assert len(files(tmp_path)) <= 16
    _, reused, _, _ = ask(tmp_path, prompt="D" * 40, **small)
    assert reused > 30


def test_a_smaller_cache_takes_the_newest_pages_that_fit(tmp_path):
    ask(tmp_path, prompt="A" * 100)
    for path in files(tmp_path):
        os.utime(path, (1, 1))
    ask(tmp_path, prompt="B" * 40)
    _, reused, _, _ = ask(tmp_path, prompt="B" * 40, num_pages=12)
    assert reused == 36 + 3  # the last page is copied


def test_another_model_is_another_cache(tmp_path):
    ask(tmp_path)
    device = NullExecutable(manifest(), 8)
    other = PrefixStore(tmp_path, "another library")
    assert list(other._scan()) == []
    other.close()
    device.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swap", "lie", "not ours"])
def test_damage_is_refused_with_a_note(tmp_path, damage, caplog):
    first, _, _, _ = ask(tmp_path)
    found = files(tmp_path)
    whole = found[0].read_bytes()
    spoilt = {
        "cut": whole[:-7],
        "flip": whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
        "empty": b"",
        "swap": found[1].read_bytes(),
        "lie": whole[:14] + (2**63).to_bytes(8, "little") + whole[22:],
        "not ours": b"hello",
    }[damage]
    found[0].write_bytes(spoilt)
    with caplog.at_level(logging.WARNING, "sterna"):
        again, _, _, refused = ask(tmp_path)
    assert again == first
    assert refused >= 1
    assert "damaged pages" in caplog.text
    assert ask(tmp_path)[3] == 0


def test_half_a_file_that_a_kill_left_is_removed(tmp_path):
    ask(tmp_path)
    left = files(tmp_path)[0].parent / ".something.page.0123"
    left.write_bytes(b"half")
    ask(tmp_path)
    assert not left.exists()


KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_prefix_store import ask, engine, PROMPT, ASKED
model = engine(prefix_cache_dir={folder!r})
model.completions.create(prompt=PROMPT, **ASKED)
print("answered", flush=True)
for i in range(10**6):
    model.completions.create(prompt=f"{{i}} " * 40, **ASKED)
"""


def test_kill_9_leaves_a_cache_that_can_be_used(tmp_path):
    plain, _, _, _ = ask(tmp_path / "other")
    paths = [str(Path(__file__).parent), *sys.path]
    program = KILLED.format(paths=paths, folder=str(tmp_path / "killed"))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"answered\n"
        deadline = time.monotonic() + 20
        while len(files(tmp_path / "killed")) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    again, reused, _, refused = ask(tmp_path / "killed")
    assert (again, refused) == (plain, 0)
    assert reused == len(PROMPT) - 1


def test_a_disk_that_cannot_be_written_is_noted_once_and_harms_nobody(
    tmp_path, monkeypatch, caplog
):
    def full(path, data):
        raise OSError(28, "No space left on device")

    plain, _, _, _ = ask(tmp_path / "other")
    monkeypatch.setattr(prefix_store, "write_atomic", full)
    with caplog.at_level(logging.WARNING, "sterna"):
        assert ask(tmp_path)[0] == plain
    assert caplog.text.count("No space left") == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--prefix-cache-dir"):
        ask(tmp_path / "file")
    with pytest.raises(RequestError, match="needs prefix_cache=True"):
        EngineOptions(prefix_cache_dir="x", prefix_cache=False)
