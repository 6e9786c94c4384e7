"""What a repository of the hub holds, and its large files, fetched so that a break costs nothing.

In: a repository and a revision; patterns of names. Out: names, and blobs in huggingface_hub's own
cache, which then finds them there. By itself it begins a file anew that a killed process left; here
the part stays beside the blobs, is continued, and counts when its SHA-256 is what the hub says.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sterna.base.errors import CheckpointError

LARGE = 16 << 20  # bytes; smaller files are begun anew
LARGEST = 50 * 10**9  # more cannot be had in one request: huggingface_hub fetches it in chunks
PART = ".part"  # what a file is called that is not whole

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file's name in the repository; its bytes and SHA-256 where the hub keeps it apart."""

    name: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at a commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.files]


def list_files(repo: str, revision: str | None) -> Listing | None:
    """What the hub says it holds; None where it cannot be asked, or does not want to answer."""
    import huggingface_hub

    try:
        info = huggingface_hub.model_info(repo, revision=revision, files_metadata=True)
    except Exception:  # whoever downloads is told the same, and says what it means
        return None
    files = [
        HubFile(s.rfilename)
        if s.lfs is None
        else HubFile(s.rfilename, int(s.lfs.size), str(s.lfs.sha256))
        for s in info.siblings or ()
    ]
    return Listing(repo, str(info.sha), tuple(files))


def fetch_large(listing: Listing, wanted: list[str], unwanted: list[str]) -> None:
    """Bring the large files among those wanted into the cache, one after the other.

    Raises CheckpointError for a file that is not what the hub says, and what huggingface_hub does.
    """
    import huggingface_hub

    tools: Any = huggingface_hub.utils  # exports by hand, which mypy does not follow
    patterns = {"allow_patterns": wanted, "ignore_patterns": unwanted}
    chosen = set(tools.filter_repo_objects(listing.names, **patterns))
    for file in listing.files:
        apart = LARGE <= file.bytes <= LARGEST and _SHA256.fullmatch(file.sha256)
        if apart and file.name in chosen and _PLAIN.fullmatch(file.name):
            _fetch(listing, file)


def _fetch(listing: Listing, file: HubFile) -> None:
    import huggingface_hub
    from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name

    tools: Any = huggingface_hub.utils
    root = Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=listing.repo, repo_type="model")
    blob = root / folder / "blobs" / file.sha256
    snapshot = root / folder / "snapshots" / listing.commit
    pointer = snapshot / file.name
    if blob.exists() or pointer.exists():
        return
    lock = root / ".locks" / folder / f"{file.sha256}.lock"  # huggingface_hub's own
    # Without the last, no scan finds the part.
    for needed in (blob.parent, lock.parent, pointer.parent):
        needed.mkdir(parents=True, exist_ok=True)
    # Where no link can point to a blob, huggingface_hub copies it: then the file itself goes there.
    whole = blob if are_symlinks_supported(root) else pointer
    with tools.WeakFileLock(lock):
        if not whole.exists():
            part = blob.with_name(f"{file.sha256}{PART}")
            _continue(listing, file, part)
            _check(listing, file, part)
            part.replace(whole)


def _continue(listing: Listing, file: HubFile, part: Path) -> None:
    """Fetch what is not yet in `part`."""
    import huggingface_hub
    from huggingface_hub.file_download import http_get

    tools: Any = huggingface_hub.utils
    url = huggingface_hub.hf_hub_url(listing.repo, file.name, revision=listing.commit)
    place = huggingface_hub.get_hf_file_metadata(url).location
    headers: dict[str, str] = tools.build_hf_headers()
    if urlparse(place).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    if part.is_file() and part.stat().st_size > file.bytes:
        part.unlink()
    with part.open("ab") as out:
        http_get(
            place,
            out,
            resume_size=out.tell(),
            headers=headers,
            expected_size=file.bytes,
            displayed_filename=file.name,
        )


def _check(listing: Listing, file: HubFile, part: Path) -> None:
    with part.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != file.sha256:
        part.unlink()
        raise CheckpointError(
            f"{file.name} of {listing.repo} came with the SHA-256 {found[:16]}..., the hub says "
            f"{file.sha256[:16]}...; download it again"
        )
