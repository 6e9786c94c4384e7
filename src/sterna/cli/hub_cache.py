"""The hub's own cache, as far as `sterna list` and `sterna rm` need it.

In: nothing, or a name. Out: models by the names that `sterna chat` takes, and their bytes. The
cache is huggingface_hub's, shared with every other program that uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sterna.checkpoint.hub import SCHEME
from sterna.checkpoint.hub_files import PART

_THEIRS = ".incomplete"  # what huggingface_hub calls a file that is not whole


def hub_models() -> dict[str, int]:
    """Bytes on the disk of each repository that holds a model, parts of files included."""
    cache = _scanned()
    repos = [r for r in cache.repos if r.repo_type == "model"] if cache is not None else []
    return {f"{SCHEME}{r.repo_id}": _room(r) for r in sorted(repos, key=lambda r: str(r.repo_id))}


def _room(repo: Any) -> int:
    """What a scan counts, which is whole files, and what broke off."""
    blobs = repo.repo_path / "blobs"
    parts: list[Path] = [p for p in blobs.glob("*") if p.suffix in (PART, _THEIRS)]
    whole: int = repo.size_on_disk
    return whole + sum(part.stat().st_size for part in parts)


def remove_hub_model(name: str) -> int:
    """Remove all revisions of a repository; the bytes freed."""
    cache = _scanned()
    assert cache is not None, "the caller has seen the model"
    revisions = [
        revision.commit_hash
        for repo in cache.repos
        if repo.repo_type == "model" and f"{SCHEME}{repo.repo_id}" == name
        for revision in repo.revisions
    ]
    strategy = cache.delete_revisions(*revisions)
    room = hub_models()[name]
    strategy.execute()
    return room


def _scanned() -> Any:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        return huggingface_hub.scan_cache_dir()
    except CacheNotFound:
        return None
