"""Where a model is: a local folder or GGUF file, or on the hub, or in another program's store.

In: what the user typed. Out: a folder or a GGUF file on this machine. The cache, the token and the
offline switch are huggingface_hub's own; pickles, and folders not asked for, are never fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.beside import recover
from sterna.checkpoint.local_stores import LM_STUDIO, OLLAMA, find

SCHEME = "HF://"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_REPO = re.compile(
    rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,199}}))?((?:/{_FOLDER}){{0,8}})"
    rf"(?::({_REVISION}))?"
)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "params_shard_*.bin"]
_UNWANTED = ["*/*", "consolidated*.safetensors", "adapter_*", "optimizer*"]
_MODULES = "modules.json"  # of sentence-transformers, and a folder of it that says more
_POOLING = "*_Pooling/config.json"
_CONFIGS = ("config.json", "mlc-chat-config.json", ADAPTER_FILES[0])
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, a revision, and what of it is meant: a folder, a GGUF file, or "" for all."""

    repo: str
    revision: str | None = None
    inside: str = ""

    @property
    def title(self) -> str:
        """What people call the model."""
        last = (self.inside or self.repo).rpartition("/")[2]
        return last.removesuffix(".gguf")


def resolve(model: str) -> Path:
    """Return the folder or GGUF file that `model` names, downloading it first if on the hub.

    "ollama:NAME" and "lmstudio:NAME" are what those programs have downloaded.

    Raises UsageError for a name that is neither, CheckpointError when the hub cannot give it.
    """
    if model[: len(SCHEME)].upper() == SCHEME:
        name = parse_hub_name(model)
        return _download(name, *_patterns(name.inside))
    found = find(model)
    if found is not None:
        return found
    try:
        folder = Path(model).expanduser()
        recover(folder.resolve())
        if folder.is_dir():
            return folder
        if folder.suffix == ".gguf" and folder.is_file():
            return folder
        exists = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, no such ~user
        raise UsageError(f"{model[:200]!r} is not a folder that can be read: {error}") from error
    if exists:
        raise UsageError(f"{model} is a file; give the model's folder, or a *.gguf file")
    if _REPO.fullmatch(model):
        raise UsageError(f"there is no folder {model}; for the hub's model write {SCHEME}{model}")
    what = "file" if model.endswith(".gguf") else "folder"
    raise UsageError(f"there is no {what} {model}; give a model folder or {SCHEME}user/repo")


def resolve_adapter(adapter: str) -> Path:
    """The folder of an adapter, here or on the hub; as `resolve`."""
    if adapter[: len(SCHEME)].upper() == SCHEME:
        name = parse_hub_name(adapter)
        inside = f"{name.inside}/" if name.inside else ""
        return _download(name, [f"{inside}{file}" for file in ADAPTER_FILES], [])
    return Path(adapter).expanduser()


def parse_hub_name(model: str) -> HubName:
    """Take `HF://user/repo`, with @revision, /folder or /file.gguf, or :revision, apart."""
    match = _REPO.fullmatch(model[len(SCHEME) :])
    if match is None or (match[2] and match[4]):
        raise UsageError(
            f"{model!r} is not of the form {SCHEME}user/repo, {SCHEME}user/repo@revision/folder "
            f"or {SCHEME}user/repo:revision"
        )
    return HubName(match[1], match[2] or match[4], match[3].lstrip("/"))


def title(model: str) -> str | None:
    """What people call a model of the hub or of another program's store; None for a path."""
    if model[: len(SCHEME)].upper() == SCHEME:
        return parse_hub_name(model).title
    for prefix in (OLLAMA, LM_STUDIO):
        if model.startswith(prefix):
            return model.removeprefix(prefix).rpartition("/")[2].removesuffix(".gguf")
    return None


def _patterns(inside: str) -> tuple[list[str], list[str]]:
    """What to fetch of a repository, and what not."""
    if inside.endswith(".gguf"):
        parts = _SHARD.fullmatch(inside)
        return [inside if parts is None else f"{parts[1]}-*-of-{parts[2]}.gguf"], []
    if not inside:
        return _WANTED, _UNWANTED
    return (
        [f"{inside}/{pattern}" for pattern in _WANTED],
        [f"{inside}/{pattern}" for pattern in _UNWANTED],
    )


def _found(folder: Path, name: HubName) -> Path:
    """What was asked for, in the folder that was downloaded."""
    path = folder / name.inside
    if not path.exists():
        raise CheckpointError(f"{SCHEME}{name.repo} has no {name.inside} at that revision")
    return path


def _download(name: HubName, wanted: list[str], unwanted: list[str]) -> Path:
    repo, revision = name.repo, name.revision
    import huggingface_hub  # takes half a second, and most runs never need it
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
        )
        if (Path(folder) / name.inside / _MODULES).is_file():
            pooling = f"{name.inside}/{_POOLING}".removeprefix("/")
            commit = Path(folder).name  # of the same files, should the branch have moved
            huggingface_hub.snapshot_download(repo, revision=commit, allow_patterns=[pooling])
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{SCHEME}{repo} asks for its licence to be accepted: do that on "
            f"https://huggingface.co/{repo}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{SCHEME}{repo} does not exist, or is private and your token (`hf auth login`) does "
            "not open it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{SCHEME}{repo} has no revision {revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{SCHEME}{repo} is not in the local cache and the hub cannot be reached (or "
            "HF_HUB_OFFLINE is set); connect, or give a local folder"
        ) from error
    except Exception as error:  # whatever its HTTP library raises, the user reads a sentence
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"could not download {SCHEME}{repo}: {reason}") from error
    if not name.inside and not any((Path(folder) / config).is_file() for config in _CONFIGS):
        _refuse_choice(name, _files(name))
    return _found(Path(folder), name)


def _files(name: HubName) -> list[str]:
    """What a repository holds; nothing where the hub cannot be asked."""
    import huggingface_hub

    try:
        return list(huggingface_hub.list_repo_files(name.repo, revision=name.revision))
    except Exception:  # only for a better sentence: whoever reads the folder has one too
        return []


def _refuse_choice(name: HubName, files: list[str]) -> None:
    """A repository of GGUF files alone holds several models."""
    models = [file for file in files if file.endswith(".gguf")]
    if models:
        raise UsageError(
            f"{SCHEME}{name.repo} holds GGUF files; name one of them, as in "
            f"{SCHEME}{name.repo}/{models[0]}: {', '.join(models[:12])}"
        )
