"""Models that Ollama and LM Studio have downloaded already, found and used where they lie.

In: a name as those programs know it. Out: a GGUF file, or a folder of one or of safetensors.
Nothing is copied, changed or removed: the files are not ours. Ollama keeps a manifest a model and
blobs named by their digests (below $OLLAMA_MODELS, else ~/.ollama/models or where its service keeps
them); LM Studio keeps folders publisher/repo (below $LMSTUDIO_MODELS, else ~/.lmstudio/models or
~/.cache/lm-studio/models). Ollama's own templates, system texts and options are not read.
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


def _ollama_roots() -> list[Path]:
    own = os.environ.get("OLLAMA_MODELS")
    places = [own] if own else ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    return [Path(place).expanduser() for place in places]


def _lm_studio_roots() -> list[Path]:
    own = os.environ.get("LMSTUDIO_MODELS")
    places = [own] if own else ["~/.lmstudio/models", "~/.cache/lm-studio/models"]
    return [Path(place).expanduser() for place in places]


def _ollama_file(name: str) -> Path:
    """The blob of "llama3.2", "llama3.2:1b", "user/model:tag" or "hf.co/user/repo:tag"."""
    model, _, tag = name.partition(":")
    words = model.split("/")
    if len(words) == 1:
        words = [_OWN, *words]
    if len(words) == 2:
        words = [_REGISTRY, *words]
    words.append(tag or "latest")
    plain = len(words) == 4 and all(_WORD.fullmatch(word) for word in words)
    if not plain or "." not in words[0]:
        raise UsageError(f"{OLLAMA}{name} is not of the form {OLLAMA}model, or with :tag after it")
    roots = _ollama_roots()
    for root in roots:
        manifest = root.joinpath("manifests", *words)
        if manifest.is_file():
            return _blob(root, manifest)
    known = ", ".join(model.name for model in _ollama_models()) or "none"
    raise UsageError(
        f"Ollama has no model {name} in {roots[0]}; it has: {known} "
        f"(`ollama pull {name}` downloads it)"
    )


def _blob(root: Path, manifest: Path) -> Path:
    found = read_json(manifest, _MANIFEST_BYTES)
    layers = field(found, "layers", list, str(manifest))
    kinds = [field(layer, "mediaType", str, str(manifest)) for layer in layers]
    for kind in _MORE:
        if kind in kinds:
            what = kind.rpartition(".")[2]
            raise UnsupportedModel(f"{manifest} is a model with a separate {what}, not read yet")
    if _MODEL not in kinds:
        raise CheckpointError(f"{manifest} names no model; pull it again with Ollama")
    if kinds.count(_MODEL) > 1:
        raise UnsupportedModel(
            f"{manifest} is a model in {kinds.count(_MODEL)} files, not read yet"
        )
    digest = field(layers[kinds.index(_MODEL)], "digest", str, str(manifest))
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise CheckpointError(f"{manifest} names the blob {digest[:80]!r}, which is no digest")
    path = root / "blobs" / f"sha256-{match[1]}"
    if not path.is_file():
        raise CheckpointError(f"{path}, the weights that {manifest} names, is gone; pull it again")
    return path


def _ollama_models() -> Iterator[LocalModel]:
    for root in _ollama_roots():
        for manifest in sorted((root / "manifests").glob("*/*/*/*")):
            registry, user, model, tag = manifest.parts[-4:]
            short = model if user == _OWN else f"{user}/{model}"
            place = "" if registry == _REGISTRY else f"{registry}/"
            try:
                path = _blob(root, manifest) if manifest.is_file() else None
            except CheckpointError:
                continue  # asked for by name, it says what is wrong
            if path is not None:
                name = f"{OLLAMA}{place}{short}:{tag}"
                yield LocalModel(name, path, path.stat().st_size)


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
