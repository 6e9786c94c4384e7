"""A page that computes in the browser, and the folders of models that it fetches.

In: folders that `sterna compile` wrote for browsers. Out: an application that hands out the
page, the package it is made with, and those files of the folders that their indexes list, with
ranges and with the headers that browsers ask for before they give a page threads and exact time;
and which files the page has, by which browsers keep it and notice a newer one.
Knows no engine: nothing is computed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from sterna.base.errors import ArtifactError, Unavailable, UsageError
from sterna.base.web import INDEX, WebIndex, decode
from sterna.serve import page
from sterna.serve.errors import HttpError, body_of
from sterna.serve.guard import Guard
from sterna.serve.options import ServeOptions
from sterna.serve.reply import ENCODER, JSON, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_PLACES = (Path(__file__).parent / "web", Path(__file__).parents[3] / "web")  # wheel, checkout
_ENTRY = "index.js"
_SHARED = ("markdown.js", "style.css", "icon.svg")  # of the other chat page
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


class Listed(msgspec.Struct, frozen=True):
    """A model as the page shows it."""

    name: str
    url: str
    family: str
    bytes: int


class PageFile(msgspec.Struct, frozen=True):
    """A file of the page, its path on the server."""

    path: str
    sha256: str


class Page(msgspec.Struct, frozen=True):
    """All files of the page as they are now; `version` changes with any of them."""

    version: str
    files: list[PageFile]


@dataclass(frozen=True, slots=True)
class WebModel:
    """A folder, under the name that it is served by."""

    name: str
    folder: Path
    index: WebIndex


class WebApp:
    """The application. `state.draining` is for the server, which sets it when it ends."""

    def __init__(self, options: ServeOptions) -> None:
        self.state = SimpleNamespace(draining=False)
        models = read_models(options.web)
        own = dict(_page_files(assets()))
        listed = ENCODER.encode([_listed(model) for model in models])
        self._app = Guard(_application(own, dict(_model_files(models)), listed), options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def assets() -> Path:
    """Where the page and the built package lie; Unavailable where the package is not built."""
    for place in _PLACES:
        if (place / "dist" / _ENTRY).is_file() and (place / "demo").is_dir():
            return place
    raise Unavailable(
        "this Sterna has no built package for browsers: in a checkout run "
        "`npm ci --prefix web && npm run build --prefix web`, then install again or serve from it"
    )


def read_models(folders: Sequence[Path]) -> list[WebModel]:
    """Indexes checked; a file that is missing, or not as long as listed, is an ArtifactError."""
    models = [WebModel(path.resolve().name, path, _index(path)) for path in folders]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two folders of --web are called {name}; rename one")
    return models


def _index(folder: Path) -> WebIndex:
    path = folder / INDEX
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no {INDEX}; `sterna compile` writes it for a target of "
            f"browsers, with --output {folder}/"
        )
    index = decode(path.read_bytes())
    for file in index.files:
        found = folder / file.name
        size = found.stat().st_size if found.is_file() else None
        if size != file.size:
            there = "is not there" if size is None else f"has {size} bytes"
            raise ArtifactError(
                f"{found} {there}, {INDEX} lists {file.size} bytes; compile the model again"
            )
    return index


def _page_files(place: Path) -> Iterator[tuple[str, Path]]:
    yield "/", place / "demo" / "index.html"
    for path in (place / "demo").iterdir():
        yield f"/{path.name}", path
    for path in sorted((place / "dist").rglob("*.js")):
        yield f"/sterna/{path.relative_to(place / 'dist').as_posix()}", path
    for name in _SHARED:
        yield f"/ui/{name}", page.FOLDER / name


def _model_files(models: Sequence[WebModel]) -> Iterator[tuple[str, Path]]:
    for model in models:
        for name in (INDEX, *(file.name for file in model.index.files)):
            yield f"/models/{model.name}/{name}", model.folder / name


def _listed(model: WebModel) -> Listed:
    return Listed(
        name=model.name,
        url=f"models/{model.name}/",
        family=model.index.model.model_type,
        bytes=sum(file.size for file in model.index.files),
    )


def _page(own: Mapping[str, Path]) -> Page:
    """What is there now: in a checkout files change while a server runs."""
    files = [PageFile(at, hashlib.sha256(f.read_bytes()).hexdigest()) for at, f in own.items()]
    return Page(hashlib.sha256(ENCODER.encode(files)).hexdigest(), files)


def _application(
    own: Mapping[str, Path], of_models: Mapping[str, Path], listed: bytes
) -> Starlette:
    files = {**own, **of_models}

    async def show(request: Request) -> Response:
        found = files.get(request.url.path)
        if found is None:
            refused = HttpError(404, f"there is nothing at {request.url.path}")
            return Response(ENCODER.encode(body_of(refused)), 404, _HEADERS, JSON.decode())
        return FileResponse(found, headers=_HEADERS, media_type=_kind(found))

    async def models(request: Request) -> Response:
        return Response(listed, headers=_HEADERS, media_type=JSON.decode())

    def the_page(request: Request) -> Response:
        return Response(ENCODER.encode(_page(own)), headers=_HEADERS, media_type=JSON.decode())

    methods = ["GET", "HEAD"]
    routes = [
        Route("/page.json", the_page, methods=methods),
        Route("/models.json", models, methods=methods),
        Route("/{path:path}", show, methods=methods),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


def _kind(path: Path) -> str:
    return _KINDS.get(path.suffix, "application/octet-stream")
