"""A server over the null device as a process of its own; its first line says where it listens."""

from __future__ import annotations

from running import null

from sterna.serve.options import ServeOptions
from sterna.serve.server import serve

if __name__ == "__main__":
    engine = null()
    serve({engine.model_name: engine}, ServeOptions(port=0), lambda url: print(url, flush=True))
