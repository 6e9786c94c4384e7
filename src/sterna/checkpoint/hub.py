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
from sterna.checkpoint.hub_files import Listing, fetch_large, list_files
from sterna.checkpoint.local_stores import LM_STUDIO, OLLAMA, find, local_models

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
_PAGE = re.compile(
    rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({_NAME}/{_NAME})"
    rf"(?:/(?:tree|blob)/([A-Za-z0-9._-]+)((?:/{_FOLDER}){{0,8}}))?/?"
)
_PICKLES = (".bin", ".pt", ".pth")
_NAMED = 12  # names of files in a sentence
_UNAUTHORIZED = 401
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
        listing = list_files(name.repo, name.revision)
        if listing is not None:
            _check_choice(name, listing.names)
        return _download(name, *_patterns(name.inside), listing)
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
    meant = _meant(model)
    if meant is not None:
        raise UsageError(f"there is no folder {model}; write {meant} for {_whose(meant)} model")
    what = "file" if model.endswith(".gguf") else "folder"
    raise UsageError(f"there is no {what} {model}; give a model folder or {SCHEME}user/repo")


def _meant(model: str) -> str | None:
    """The name of what was typed without its prefix, or as the hub's page is called."""
    local = [found.name for found in local_models()]
    for name in (f"{OLLAMA}{model}", f"{OLLAMA}{model}:latest", f"{LM_STUDIO}{model}"):
        if name in local:
            return name
    page = _PAGE.fullmatch(model)
    if page is not None:
        revision = f"@{page[2]}" if page[2] else ""
        return f"{SCHEME}{page[1]}{revision}{page[3] or ''}"
    return f"{SCHEME}{model}" if _REPO.fullmatch(model) else None


def _whose(name: str) -> str:
    return {OLLAMA: "Ollama's", LM_STUDIO: "LM Studio's"}.get(f"{name.split(':')[0]}:", "the hub's")


def resolve_adapter(adapter: str) -> Path:
    """The folder of an adapter, here or on the hub; as `resolve`."""
    if adapter[: len(SCHEME)].upper() == SCHEME:
        name = parse_hub_name(adapter)
        inside = f"{name.inside}/" if name.inside else ""
        wanted = [f"{inside}{file}" for file in ADAPTER_FILES]
        return _download(name, wanted, [], list_files(name.repo, name.revision))
    return Path(adapter).expanduser()


def parse_hub_name(model: str) -> HubName:
    """Take `HF://user/repo`, with @revision, /folder or /file.gguf, or :revision, apart."""
    match = _REPO.fullmatch(model[len(SCHEME) :].removesuffix("/"))
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


def _download(
    name: HubName, wanted: list[str], unwanted: list[str], listing: Listing | None
) -> Path:
    """Fetch the files of these patterns; the folder or file that was asked for."""
    repo, revision = name.repo, name.revision
    import huggingface_hub  # takes half a second, and most runs never need it
    from huggingface_hub import errors

    try:
        if listing is not None:
            fetch_large(listing, wanted, unwanted)
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
        )
        if (Path(folder) / name.inside / _MODULES).is_file():
            pooling = f"{name.inside}/{_POOLING}".removeprefix("/")
            commit = Path(folder).name  # of the same files, should the branch have moved
            huggingface_hub.snapshot_download(repo, revision=commit, allow_patterns=[pooling])
    except CheckpointError:
        raise
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
        raise CheckpointError(_not_here(repo, error.__cause__)) from error
    except Exception as error:  # whatever its HTTP library raises, the user reads a sentence
        raise CheckpointError(_not_given(repo, error)) from error
    path = Path(folder) / name.inside
    if not path.exists():
        raise CheckpointError(
            f"{SCHEME}{repo} has no {name.inside} at that revision, or it was never downloaded and "
            "the hub cannot be asked"
        )
    return path


def _not_here(repo: str, cause: BaseException | None) -> str:
    """The hub was of no use, and the cache holds too little."""
    answer = _status(cause)
    if answer is not None:
        return (
            f"{SCHEME}{repo} is not in the local cache whole, and the hub answers {answer}: try "
            "again later, or give a local folder"
        )
    return (
        f"{SCHEME}{repo} is not in the local cache whole, and the hub cannot be reached (or "
        "HF_HUB_OFFLINE is set); connect, or give a local folder"
    )


def _not_given(repo: str, error: Exception) -> str:
    if _status(error) == _UNAUTHORIZED:
        return (
            f"the hub does not know the token that it was asked for {SCHEME}{repo} with; log in "
            "with `hf auth login`, or mend HF_TOKEN"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"could not download {SCHEME}{repo}: {reason}"


def _status(error: BaseException | None) -> int | None:
    """The number of an HTTP answer, where an error came of one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _check_choice(name: HubName, names: list[str]) -> None:
    """Refuse what is no model, before anything is fetched, and say what there is instead."""
    here = f"{name.inside}/" if name.inside else ""
    asked = f"{SCHEME}{name.repo}"
    repo = [n.removeprefix(here) for n in names if n.startswith(here)]
    if name.inside.endswith(".gguf"):
        if name.inside not in names:
            raise CheckpointError(f"{asked} has no {name.inside}; it has {_some(names, '.gguf')}")
        return
    if not repo:
        raise CheckpointError(f"{asked} has no {name.inside or 'files'} at that revision")
    files = [n for n in repo if "/" not in n]
    weights = [n for n in files if n.endswith(".safetensors") or n.startswith("params_shard_")]
    models = [here + n for n in repo if n.endswith(".gguf")]
    pickles = [n for n in files if n.endswith(_PICKLES)]
    folders = [here + n.rpartition("/")[0] for n in repo if n.endswith("/config.json")]
    if any(config in files for config in _CONFIGS) and (weights or not (models or pickles)):
        return
    if models:
        raise UsageError(
            f"{asked} holds GGUF files; name one of them, as in {asked}/{models[0]}: "
            f"{_some(models, '.gguf')}"
        )
    if pickles:
        raise CheckpointError(
            f"{asked} has its weights as {pickles[0]} alone, a pickle, which can run any code and "
            "is never read; look for a revision or a repository with *.safetensors"
        )
    if folders:
        raise UsageError(
            f"{asked} has no model at its top; name one of its folders, as in "
            f"{asked}/{folders[0]}: {_some(folders, '')}"
        )
    raise CheckpointError(f"{asked} has no config.json{here and f' in {name.inside}'}: no model")


def _some(names: list[str], ending: str) -> str:
    return ", ".join([n for n in names if n.endswith(ending)][:_NAMED]) or f"no *{ending}"
