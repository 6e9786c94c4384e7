"""Models that Ollama and LM Studio have downloaded already, found and used where they lie.

In: a name as those programs know it. Out: a GGUF file, or a folder that holds one. Nothing is
copied, changed or removed: the files are not ours. Ollama keeps a manifest a model and blobs named
by their digests (below $OLLAMA_MODELS, else ~/.ollama/models); LM Studio keeps folders
publisher/repo (below $LMSTUDIO_MODELS, else ~/.lmstudio/models or ~/.cache/lm-studio/models).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sterna.base.errors import CheckpointError, UnsupportedModel, UsageError
from sterna.checkpoint.config import field, read_json

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"

_REGISTRY = "registry.ollama.ai"
_OWN = "library"  # the models of Ollama itself, whose names have no user
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL = "application/vnd.ollama.image.model"
_MORE = ("application/vnd.ollama.image.adapter", "application/vnd.ollama.image.projector")
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalModel:
    """`name` is what `sterna chat` takes; `path` a GGUF file or a folder with one."""

    name: str
    path: Path
    bytes: int


def find(name: str) -> Path | None:
    """The file or folder of a name with one of the prefixes; None for other names.

    Raises UsageError for a model that is not there, CheckpointError for a damaged store.
    """
    if name.startswith(OLLAMA):
        return _ollama_file(name.removeprefix(OLLAMA))
    if name.startswith(LM_STUDIO):
        return _lm_studio_path(name.removeprefix(LM_STUDIO))
    return None


def local_models() -> list[LocalModel]:
    """What both programs have downloaded, by name."""
    return sorted([*_ollama_models(), *_lm_studio_models()], key=lambda model: model.name)


def _ollama_root() -> Path:
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def _lm_studio_roots() -> list[Path]:
    own = os.environ.get("LMSTUDIO_MODELS")
    places = [own] if own else ["~/.lmstudio/models", "~/.cache/lm-studio/models"]
    return [Path(place).expanduser() for place in places]


def _ollama_file(name: str) -> Path:
    """The blob of "llama3.2", "llama3.2:1b" or "user/model:tag"."""
    model, _, tag = name.partition(":")
    words = model.split("/")
    if len(words) == 1:
        words = [_OWN, *words]
    words.append(tag or "latest")
    if len(words) != 3 or not all(_WORD.fullmatch(word) for word in words):
        raise UsageError(f"{OLLAMA}{name} is not of the form {OLLAMA}model, or with :tag after it")
    manifest = _ollama_root().joinpath("manifests", _REGISTRY, *words)
    if not manifest.is_file():
        known = ", ".join(model.name for model in _ollama_models()) or "none"
        raise UsageError(
            f"Ollama has no model {name} in {_ollama_root()}; it has: {known} "
            f"(`ollama pull {name}` downloads it)"
        )
    return _blob(manifest)


def _blob(manifest: Path) -> Path:
    found = read_json(manifest, _MANIFEST_BYTES)
    layers = field(found, "layers", list, str(manifest))
    kinds = {field(layer, "mediaType", str, str(manifest)): layer for layer in layers}
    for kind in _MORE:
        if kind in kinds:
            what = kind.rpartition(".")[2]
            raise UnsupportedModel(f"{manifest} is a model with a separate {what}, not read yet")
    if _MODEL not in kinds:
        raise CheckpointError(f"{manifest} names no model; pull it again with Ollama")
    digest = field(kinds[_MODEL], "digest", str, str(manifest))
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise CheckpointError(f"{manifest} names the blob {digest[:80]!r}, which is no digest")
    path = _ollama_root() / "blobs" / f"sha256-{match[1]}"
    if not path.is_file():
        raise CheckpointError(f"{path}, the weights of {manifest.name}, is gone; pull it again")
    return path


def _ollama_models() -> Iterator[LocalModel]:
    root = _ollama_root() / "manifests" / _REGISTRY
    for manifest in sorted(root.glob("*/*/*")) if root.is_dir() else ():
        if not manifest.is_file():
            continue
        user, model, tag = manifest.parts[-3:]
        try:
            path = _blob(manifest)
        except CheckpointError:
            continue  # asked for by name, it says what is wrong
        short = model if user == _OWN else f"{user}/{model}"
        yield LocalModel(f"{OLLAMA}{short}:{tag}", path, path.stat().st_size)


def _lm_studio_path(name: str) -> Path:
    """The folder "publisher/repo", or a file in it."""
    words = name.split("/")
    if len(words) not in (2, 3) or not all(_WORD.fullmatch(word) for word in words):
        raise UsageError(
            f"{LM_STUDIO}{name} is not of the form {LM_STUDIO}publisher/repo, or with /file.gguf"
        )
    for root in _lm_studio_roots():
        path = root.joinpath(*words)
        if path.exists():
            return path
    known = ", ".join(model.name for model in _lm_studio_models()) or "none"
    raise UsageError(f"LM Studio has no model {name}; it has: {known}")


def _lm_studio_models() -> Iterator[LocalModel]:
    for root in _lm_studio_roots():
        for folder in sorted(root.glob("*/*")) if root.is_dir() else ():
            files = [path for path in folder.glob("*") if path.suffix in (".gguf", ".safetensors")]
            if not files or not folder.is_dir():
                continue
            name = f"{LM_STUDIO}{folder.parent.name}/{folder.name}"
            yield LocalModel(name, folder, sum(path.stat().st_size for path in files))
