"""What the user typed becomes a folder, or a sentence on what to type instead."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from sterna.base import errors as base_errors
from sterna.base.errors import CheckpointError, Error, UsageError
from sterna.checkpoint.hub import HubName, parse_hub_name, resolve, title
from sterna.checkpoint.hub_files import HubFile, Listing

SOURCES = str(Path(base_errors.__file__).parents[2])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A hub that notes what it was asked, and raises what it is told to."""
    seen: dict[str, Any] = {"raise": None}

    def snapshot_download(repo: str, **options: Any) -> str:
        seen.update(options, repo=repo)
        if seen["raise"] is not None:
            raise seen["raise"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    def list_files(repo: str, revision: str | None) -> Listing | None:
        names = seen.get("files")
        return None if names is None else Listing(repo, "", tuple(HubFile(n) for n in names))

    monkeypatch.setattr("sterna.checkpoint.hub.list_files", list_files)
    return seen


def test_what_says_how_embeddings_are_pooled_comes_too(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    resolve("HF://a/b")
    assert hub["allow_patterns"] != ["*_Pooling/config.json"]
    (tmp_path / "modules.json").write_text("[]")
    resolve("HF://a/b")
    assert hub["allow_patterns"] == ["*_Pooling/config.json"]
    assert hub["revision"] == tmp_path.name  # the commit that the other files are of


def test_local_folder(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_a_folder_that_a_killed_writer_left_aside(tmp_path: Path) -> None:
    (tmp_path / ".M.old-3").mkdir()
    assert resolve(str(tmp_path / "M")).is_dir()


def test_hub_name_is_fetched(hub: dict[str, Any], tmp_path: Path) -> None:
    assert resolve("HF://meta-llama/Llama-3.2-1B:refs/pr/3") == tmp_path
    assert (hub["repo"], hub["revision"]) == ("meta-llama/Llama-3.2-1B", "refs/pr/3")
    assert resolve("hf://a/b") == tmp_path
    assert hub["revision"] is None


def wanted(hub: dict[str, Any], names: list[str]) -> list[str]:
    found = huggingface_hub.utils.filter_repo_objects(
        names, allow_patterns=hub["allow_patterns"], ignore_patterns=hub["ignore_patterns"]
    )
    return list(found)


def test_no_pickle_and_no_subfolder_is_fetched(hub: dict[str, Any]) -> None:
    resolve("HF://a/b")
    useful = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "params_shard_0.bin",
        "tensor-cache.json",
    ]
    useless = [
        "pytorch_model.bin",
        "training_args.bin",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "onnx/config.json",
        "model.gguf",
        "run.py",
        "README.md",
    ]
    assert wanted(hub, useful + useless) == useful


@pytest.mark.parametrize(
    "name",
    [
        "HF://",
        "HF://a",
        "HF://a/b@x:y",
        "HF://a/b/../c",
        "HF://a/b/.git",
        "HF://a/../b",
        "HF://a/b:",
        "HF://a/b:-x",
        "HF:///a/b",
        "HF://a/b c",
    ],
)
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(UsageError, match="HF://user/repo"):
        parse_hub_name(name)


@pytest.mark.parametrize(
    ("name", "repo", "revision", "inside", "called"),
    [
        ("HF://a/b", "a/b", None, "", "b"),
        ("HF://a/b/", "a/b", None, "", "b"),
        ("HF://a/b@v1.0", "a/b", "v1.0", "", "b"),
        ("HF://a/b@v1.0/fp16/main", "a/b", "v1.0", "fp16/main", "main"),
        ("HF://a/b/sub", "a/b", None, "sub", "sub"),
        ("HF://a/b/M-Q4_K_M.gguf", "a/b", None, "M-Q4_K_M.gguf", "M-Q4_K_M"),
        ("HF://a/b:refs/pr/3", "a/b", "refs/pr/3", "", "b"),
    ],
)
def test_revisions_folders_and_files(
    name: str, repo: str, revision: str | None, inside: str, called: str
) -> None:
    assert parse_hub_name(name) == HubName(repo, revision, inside)
    assert title(name) == called


def test_a_repository_of_gguf_files(hub: dict[str, Any]) -> None:
    hub["files"] = ["README.md", "M-Q4_K_M.gguf", "M-Q8_0.gguf"]
    with pytest.raises(UsageError, match=r"HF://a/b/M-Q4_K_M\.gguf: M-Q4_K_M\.gguf, M-Q8_0"):
        resolve("HF://a/b")


@pytest.mark.parametrize(
    ("files", "name", "sentence"),
    [
        (["README.md"], "", "HF://a/b has no config.json: no model"),
        ([], "", "HF://a/b has no files at that revision"),
        (["x/config.json", "y/config.json"], "", "as in HF://a/b/x: x, y"),
        (["x/config.json"], "/z", "HF://a/b has no z at that revision"),
        (["x/README.md"], "/x", "HF://a/b has no config.json in x: no model"),
        (
            ["config.json", "m.gguf"],
            "",
            "holds GGUF files; name one of them, as in HF://a/b/m.gguf",
        ),
        (["x/m.gguf"], "/x", "as in HF://a/b/x/m.gguf"),
        (["m.gguf"], "/n.gguf", "has no n.gguf; it has m.gguf"),
        (["config.json", "pytorch_model.bin"], "", "as pytorch_model.bin alone, a pickle"),
    ],
)
def test_what_is_no_model_is_refused_before_it_is_fetched(
    hub: dict[str, Any], files: list[str], name: str, sentence: str
) -> None:
    hub["files"] = files
    with pytest.raises(Error, match=sentence):
        resolve(f"HF://a/b{name}")
    assert "repo" not in hub


def test_one_file_or_folder_is_fetched(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert resolve("HF://a/b@main/sub") == tmp_path / "sub"
    assert wanted(hub, ["config.json", "sub/config.json", "sub/deep/config.json"]) == [
        "sub/config.json"
    ]
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    assert resolve("HF://a/b/m-00001-of-00002.gguf").name == "m-00001-of-00002.gguf"
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf", "config.json"]
    assert wanted(hub, names) == names[:2]
    with pytest.raises(CheckpointError, match="has no none"):
        resolve("HF://a/b/none")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write HF://user/repo for the hub's model"):
        resolve("user/repo")
    page = "https://huggingface.co/user/repo"
    for typed in (page, f"{page}/", "hf.co/user/repo", f"{page}/tree/v1/sub"):
        end = "@v1/sub" if "v1" in typed else ""
        with pytest.raises(UsageError, match=f"write HF://user/repo{end} for the hub's model"):
            resolve(typed)
    with pytest.raises(UsageError, match="give a model folder"):
        resolve(str(tmp_path / "none"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        resolve(str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-this-name/x"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(UsageError, match="not a folder that can be read"):
        resolve(name)


def bare(kind: type[Exception], text: str = "", status: int | None = None) -> Exception:
    """An error of the hub's without the HTTP response that its constructor wants."""
    error: Any = kind.__new__(kind)
    Exception.__init__(error, text)
    error.response = SimpleNamespace(status_code=status)
    return error  # type: ignore[no-any-return]


def answered(error: Exception, status: int) -> Exception:
    """An error that came of an answer of the hub."""
    error.__cause__ = bare(errors.HfHubHTTPError, "no", status)
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (bare(errors.GatedRepoError), "licence to be accepted"),
        (bare(errors.RepositoryNotFoundError), "does not exist, or is private"),
        (bare(errors.RevisionNotFoundError), "has no revision 'v2'"),
        (errors.LocalEntryNotFoundError("no"), "HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE"),
        (answered(errors.LocalEntryNotFoundError("no"), 429), "the hub answers 429"),
        (bare(errors.HfHubHTTPError, "401", 401), "does not know the token"),
        (bare(errors.HfHubHTTPError, "503 Server Error\nbody"), "could not download .*503 Server"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_hub_errors_are_sentences(hub: dict[str, Any], error: Exception, sentence: str) -> None:
    hub["raise"] = error
    with pytest.raises(CheckpointError, match=sentence) as caught:
        resolve("HF://a/b:v2")
    assert "\n" not in str(caught.value)


def test_offline_for_real(tmp_path: Path) -> None:
    code = (
        "from sterna.checkpoint.hub import resolve\n"
        "from sterna.base.errors import CheckpointError\n"
        "try: resolve('HF://sterna-test/none')\n"
        "except CheckpointError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "is not in the local cache" in done.stdout, done.stderr


def test_the_hub_client_is_imported_late() -> None:
    code = "import sys, sterna.checkpoint.hub; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": SOURCES})
