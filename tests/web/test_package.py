"""The package builds, its own tests pass, and it stays small."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from building import run

MOST = 60_000  # bytes of all that a page loads before texts, each compressed as a server would
IMPORT = re.compile(r"""^(?:import|export)\b[^;]*?\bfrom "\./([\w.]+)";""", re.MULTILINE)


def test_the_packages_own_tests(dist: Path) -> None:
    said = run("npm", "test", "--silent")
    assert "# fail 0" in said
    assert "# pass 0" not in said


def test_it_is_small(dist: Path) -> None:
    """Without tokenizer and templates, which are loaded apart."""
    sizes: dict[str, int] = {}
    waiting = ["index.js"]
    while waiting:
        name = waiting.pop()
        if name not in sizes:
            sizes[name] = len(gzip.compress((dist / name).read_bytes(), 9))
            waiting += IMPORT.findall((dist / name).read_text())
    assert {"engine.js", "program.js", "cache.js", "sampling.js"} <= sizes.keys()
    assert not {"text.js", "tokenizer.js"} & sizes.keys()
    assert sum(sizes.values()) < MOST, sizes


def test_code_of_webllms_users_compiles(dist: Path) -> None:
    """With another import, and as strict as the compiler can be."""
    own = json.loads((dist.parent / "tsconfig.json").read_text())["compilerOptions"]
    strict = ("--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess")
    how = ("--target", own["target"], "--module", own["module"], "--moduleResolution", "bundler")
    lib = ("--lib", ",".join(own["lib"]), "--types", "")
    run("npx", "tsc", "--noEmit", "--ignoreConfig", *strict, *how, *lib, "test/webllm.ts")
