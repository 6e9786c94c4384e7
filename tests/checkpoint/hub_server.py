"""A hub of one private repository on localhost, as far as downloading from one goes.

In: files by revision, a token. Out: the API's answers that huggingface_hub asks for. The first
download of a large file breaks off in the middle; `asked` notes every request with its range.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO, TOKEN, LARGE = "someone/private", "hf_secret", 1 << 20


@dataclass
class Hub:
    """`files` are those of each revision; commits are hashes of their names."""

    files: Mapping[str, Mapping[str, bytes]]
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    broken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = ThreadingHTTPServer(("localhost", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self.server.server_address[1]}"

    def commit(self, revision: str) -> str | None:
        known = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.files}
        return known.get(revision) or (revision if revision in known.values() else None)

    def at(self, commit: str) -> Mapping[str, bytes]:
        return next(files for name, files in self.files.items() if self.commit(name) == commit)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """A file as a repository's description has it; large ones are kept apart (LFS)."""
    found: dict[str, object] = {"rfilename": name, "size": len(data)}
    if len(data) >= LARGE:
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
    return found


class _Handler(BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.owner.asked.append((self.command, self.path, self.headers.get("range", "")))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"", {"x-error-code": "RepoNotFound"})
        elif self.path.split("?")[0] == f"/api/models/{REPO}":
            self.tell("main")
        elif self.path.startswith(f"/api/models/{REPO}/revision/"):
            self.tell(self.path.rsplit("/", 1)[1].split("?")[0])
        elif self.path.startswith(f"/api/models/{REPO}/tree/"):
            self.list_files(self.path.rsplit("/", 1)[1].split("?")[0])
        elif self.path.startswith(f"/{REPO}/resolve/"):
            commit, _, name = self.path.removeprefix(f"/{REPO}/resolve/").partition("/")
            self.send_file(commit, name)
        else:
            self.answer(404, b"", {"x-error-code": "RepoNotFound"})

    def tell(self, revision: str) -> None:
        commit = self.owner.commit(revision)
        if commit is None:
            self.answer(404, b"", {"x-error-code": "RevisionNotFound"})
            return
        names = [_sibling(name, data) for name, data in self.owner.at(commit).items()]
        told = {"id": REPO, "sha": commit, "siblings": names, "private": True, "tags": []}
        self.answer(200, json.dumps(told).encode(), {"content-type": "application/json"})

    def list_files(self, commit: str) -> None:
        listed = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.owner.at(commit).items()
        ]
        self.answer(200, json.dumps(listed).encode(), {"content-type": "application/json"})

    def send_file(self, revision: str, name: str) -> None:
        commit = self.owner.commit(revision)
        data = None if commit is None else self.owner.at(commit).get(name)
        if commit is None or data is None:
            self.answer(404, b"", {"x-error-code": "EntryNotFound"})
            return
        tag = hashlib.sha256(data).hexdigest()
        first = int(self.headers.get("range", "bytes=0-")[6:].split("-")[0])
        headers = {"etag": f'"{tag}"', "x-repo-commit": commit, "accept-ranges": "bytes"}
        if first:
            headers["content-range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        breaks = self.command == "GET" and len(data) >= LARGE and name not in self.owner.broken
        if breaks:
            self.owner.broken.add(name)
        part = data[first:]
        self.answer(
            206 if first else 200, part, headers, part[: len(part) // 2] if breaks else part
        )
        self.close_connection = breaks

    def answer(
        self, code: int, body: bytes, headers: Mapping[str, str], sent: bytes | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)
