"""Sterna compiles a language model once and runs it on every device.

    from sterna import Engine
    engine = Engine(model="./dist/M/")
    engine.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}])

`Engine` and `AsyncEngine` are those of `sterna.local`, as is `Embedder`, which makes vectors of
texts; `MLCEngine` and `AsyncMLCEngine` are the
same under the names that MLC's users know.
"""

from typing import TYPE_CHECKING, Any

from sterna.base.errors import Error
from sterna.base.version import __version__

if TYPE_CHECKING:
    from sterna.local import AsyncEngine, AsyncMLCEngine, Embedder, Engine, MLCEngine

_ENGINES = ("AsyncEngine", "AsyncMLCEngine", "Embedder", "Engine", "MLCEngine")

__all__ = [
    "AsyncEngine",
    "AsyncMLCEngine",
    "Embedder",
    "Engine",
    "Error",
    "MLCEngine",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # An engine brings numpy, jinja2 and more, ten times what `import sterna` takes without; every
    # command and everyone who catches `sterna.Error` would wait for it.
    if name in _ENGINES:
        from sterna import local

        return getattr(local, name)
    raise AttributeError(f"module 'sterna' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ENGINES})
