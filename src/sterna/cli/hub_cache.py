"""The hub's own cache, as far as `sterna list` and `sterna rm` need it.

In: nothing, or a name. Out: models by the names that `sterna chat` takes, and their bytes. The
cache is huggingface_hub's, shared with every other program that uses it.
"""

from __future__ import annotations

from typing import Any

from sterna.checkpoint.hub import SCHEME


def hub_models() -> dict[str, int]:
    """Bytes on the disk of each repository that holds a model."""
    cache = _scanned()
    repos = cache.repos if cache is not None else ()
    found = {f"{SCHEME}{r.repo_id}": int(r.size_on_disk) for r in repos if r.repo_type == "model"}
    return dict(sorted(found.items()))


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
    strategy.execute()
    return int(strategy.expected_freed_size)


def _scanned() -> Any:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        return huggingface_hub.scan_cache_dir()
    except CacheNotFound:
        return None
