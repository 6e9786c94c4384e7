"""Downloads from a hub that answers: revisions, folders, a token, a broken connection, offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LARGE, REPO, TOKEN, Hub

SRC = Path(__file__).resolve().parents[2] / "src"
CONFIG, WEIGHTS = b'{"model_type": "llama"}', bytes(range(256)) * (24 * LARGE // 256)
FILES = {
    "main": {"config.json": CONFIG, "model.safetensors": b"main", "pytorch_model.bin": b"pickle"},
    "v1": {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "small/config.json": CONFIG,
        "small/model.safetensors": b"small",
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"adapter",
    },
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub(FILES)
    yield running
    running.close()


def resolve(home: Path, url: str, name: str, how: str = "resolve", **extra: str) -> object:
    """Files and contents' sizes of what a name gives, or the error's sentence; a process apart."""
    code = (
        "import json, sys\n"
        "from sterna.base.errors import Error\n"
        f"from sterna.checkpoint.hub import {how} as found\n"
        "try:\n"
        "    folder = found(sys.argv[1])\n"
        "    files = {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}\n"
        "    print(json.dumps(files))\n"
        "except Error as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "PYTHONPATH": str(SRC)}
    own |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "localhost", "no_proxy": "localhost"}
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, env={**plain, **own, **extra}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_private_repository_opens_with_its_token(hub: Hub, tmp_path: Path) -> None:
    found = resolve(tmp_path, hub.url, f"HF://{REPO}")
    assert found == {"config.json": len(CONFIG), "model.safetensors": 4}
    refused = resolve(tmp_path / "other", hub.url, f"HF://{REPO}", HF_TOKEN="hf_wrong")
    assert "private" in str(refused)
    assert "hf auth login" in str(refused)


def test_a_download_that_broke_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    found = resolve(tmp_path, hub.url, f"HF://{REPO}:v1")
    assert found == {"config.json": len(CONFIG), "model.safetensors": len(WEIGHTS)}
    gets = [
        ranged
        for how, path, ranged in hub.asked
        if how == "GET" and path.endswith("model.safetensors")
    ]
    assert len(gets) == 2
    assert gets[1].startswith("bytes=")
    assert not gets[1].startswith("bytes=0-")


def test_what_a_killed_process_left_is_continued(hub: Hub, tmp_path: Path) -> None:
    """And begun anew where it is not what the hub has: a part of other bytes, one too long."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blobs = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{digest}.part"
    hub.broken.add("model.safetensors")
    part.write_bytes(b"x" * 1000)
    assert "SHA-256" in str(resolve(tmp_path, hub.url, f"HF://{REPO}:v1"))
    assert not part.exists()
    part.write_bytes(WEIGHTS[:12345])
    found = resolve(tmp_path, hub.url, f"HF://{REPO}:v1")
    assert found == {"config.json": len(CONFIG), "model.safetensors": len(WEIGHTS)}
    assert (blobs / digest).read_bytes() == WEIGHTS
    ranges = [ranged for how, path, ranged in hub.asked if how == "GET" and "safetensors" in path]
    assert ranges == ["bytes=1000-", "bytes=12345-"]


def test_where_no_link_can_be_made_a_file_is_kept_once(hub: Hub, tmp_path: Path) -> None:
    hub.broken.add("model.safetensors")
    found = resolve(tmp_path, hub.url, f"HF://{REPO}:v1", HF_HUB_DISABLE_SYMLINKS="1")
    assert found == {"config.json": len(CONFIG), "model.safetensors": len(WEIGHTS)}
    large = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > LARGE]
    assert [path.name for path in large] == ["model.safetensors"]


def test_offline_what_is_here_is_used(hub: Hub, tmp_path: Path) -> None:
    before = resolve(tmp_path, hub.url, f"HF://{REPO}")
    count = len(hub.asked)
    assert resolve(tmp_path, hub.url, f"HF://{REPO}", HF_HUB_OFFLINE="1") == before
    missing = resolve(tmp_path, hub.url, f"HF://{REPO}:v1", HF_HUB_OFFLINE="1")
    assert "local cache" in str(missing)
    assert len(hub.asked) == count


def test_folders_adapters_and_revisions_that_are_not_there(hub: Hub, tmp_path: Path) -> None:
    inside = resolve(tmp_path, hub.url, f"HF://{REPO}@v1/small")
    assert inside == {"config.json": len(CONFIG), "model.safetensors": 5}
    adapter = resolve(tmp_path, hub.url, f"HF://{REPO}@v1", "resolve_adapter")
    assert adapter == {"adapter_config.json": 2, "adapter_model.safetensors": 7}
    assert "no revision 'v9'" in str(resolve(tmp_path, hub.url, f"HF://{REPO}:v9"))
