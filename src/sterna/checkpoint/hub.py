"""Where a model is: a local folder or GGUF file, or `HF://user/repo[:revision]`, fetched.

In: what the user typed. Out: a folder or a GGUF file on this machine. The cache, the token and the
offline switch are huggingface_hub's own; pickles and repositories' subfolders are never fetched.
"""

from __future__ import annotations

import re
from pathlib import Path

from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.beside import recover

SCHEME = "HF://"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPO = re.compile(rf"({_NAME}/{_NAME})(?::([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")

_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "params_shard_*.bin"]
_UNWANTED = ["*/*", "consolidated*.safetensors", "adapter_*", "optimizer*"]


def resolve(model: str) -> Path:
    """Return the folder or GGUF file that `model` names, downloading it first if on the hub.

    Raises UsageError for a name that is neither, CheckpointError when the hub cannot give it.
    """
    if model[: len(SCHEME)].upper() == SCHEME:
        repo, revision = parse_repo(model)
        return _download(repo, revision)
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
    raise UsageError(f"there is no folder {model}; give a model folder or {SCHEME}user/repo")


def parse_repo(model: str) -> tuple[str, str | None]:
    """Split `HF://user/repo[:revision]` into the repository and the revision."""
    match = _REPO.fullmatch(model[len(SCHEME) :])
    if match is None:
        raise UsageError(
            f"{model!r} is not of the form {SCHEME}user/repo or {SCHEME}user/repo:revision"
        )
    return match[1], match[2]


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub  # takes half a second, and most runs never need it
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
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
    return Path(folder)
