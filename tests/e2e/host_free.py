"""A compiled model run on another machine's processor, emulated, with nothing but its own code.

In: a model folder, a target and a prompt. Out: the logits of greedy
decoding. The memory that a runtime would
allocate and fill is laid out here as one image, in which pointers are offsets; `host_free.c`,
compiled into the library, maps it and calls the entry points. Its prompt takes the prefill entry
and every further token the decode entry.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from compiled import Logits, Part, step_input

from sterna.base.artifact import CompileOptions, Entry, Manifest
from sterna.base.dtype import dtype
from sterna.base.target import Target
from sterna.checkpoint.model_folder import ModelFolder, open_model
from sterna.codegen.toolchain import compile_library
from sterna.compiler import compile_source
from sterna.runtime.batch import prepare
from sterna.runtime.memory import io_bytes, pack, packed_bytes, packed_shape, padded
from sterna.runtime.threads import POOL_BYTES

PROGRAM = Path(__file__).with_name("host_free.c")
MOST_STEPS = 64
PAGES = 4


def run_under_qemu(
    folder: Path,
    target: Target,
    options: CompileOptions,
    prompt: Sequence[int],
    count: int,
    scratch: Path,
) -> Logits:
    """The logits of `count` greedy steps; skips where there is no emulator."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("readelf") is None:
        pytest.skip("needs qemu-aarch64 (package qemu-user) and readelf")
    model = open_model(folder)
    source = compile_source(model, target, options)
    library = scratch / "model.so"
    compile_library(source.text + PROGRAM.read_text(encoding="utf-8"), target, library)
    program = with_entry_point(library, "start")
    image = scratch / "image"
    image.write_bytes(memory_image(model, source.manifest, prompt, count))
    with image.open("rb") as file:
        done = subprocess.run([emulator, program], stdin=file, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, "<f4").reshape(count, source.manifest.model.vocab_size)


def with_entry_point(library: Path, symbol: str) -> Path:
    """A copy of an ELF library that starts at a function of its own."""
    line = ["readelf", "--dyn-syms", "-W", library]
    symbols = subprocess.run(line, capture_output=True, text=True).stdout
    words = (line.split() for line in symbols.splitlines())
    address = next(int(each[1], 16) for each in words if each[-1:] == [symbol])
    data = bytearray(library.read_bytes())
    struct.pack_into("<Q", data, 24, address)  # e_entry
    program = library.with_suffix(".program")
    program.write_bytes(data)
    program.chmod(0o755)
    return program


class Image:
    """Memory that grows; `put` gives offsets, aligned as a runtime aligns."""

    def __init__(self) -> None:
        self.bytes = bytearray(8 * (7 + 5 * MOST_STEPS))
        self.bytes += bytes(-len(self.bytes) % 64)

    def put(self, data: bytes) -> int:
        offset = len(self.bytes)
        self.bytes += data + bytes(padded(len(data)) - len(data))
        return offset

    def room(self, size: int) -> int:
        return self.put(bytes(size))


def memory_image(
    model: ModelFolder, manifest: Manifest, prompt: Sequence[int], count: int
) -> bytes:
    """Weights, cache, working memory, and the inputs of every step."""
    image = Image()
    pool, arena = image.room(POOL_BYTES), image.room(max(e.arena_bytes for e in manifest.entries))
    scratch = image.room(max(e.scratch_bytes for e in manifest.entries))
    logits = image.room(io_bytes(manifest.entries)["logits"])
    shared = [image.room(PAGES * manifest.kv_cache.page_bytes)]
    for param in manifest.params:
        weight = np.asarray(model.tensors[param.name].read())
        packed = np.zeros(packed_bytes(param), np.uint8)
        pack(weight, param, packed.view(dtype(param.dtype).numpy).reshape(packed_shape(param)))
        shared.append(image.put(packed.tobytes()))
    head = [pool, scratch, arena, logits, manifest.model.vocab_size, count]
    for i in range(count):
        tokens = list(prompt) if i == 0 else [0]
        part = Part(tokens, 0 if i == 0 else len(prompt) + i - 1, range(PAGES))
        entry = manifest.entry("prefill" if i == 0 else "decode")
        head += [int(i > 0), *put_step(image, manifest, entry, part, logits, shared)]
    struct.pack_into(f"<{1 + len(head)}q", image.bytes, 0, len(image.bytes), *head)
    return bytes(image.bytes)


def put_step(
    image: Image, manifest: Manifest, entry: Entry, part: Part, logits: int, shared: list[int]
) -> tuple[int, int, int, int]:
    """Offsets of its dims and of its table of buffers, the table's length, and of its tokens."""
    prepared = prepare(step_input([part], manifest.kv_cache.page_size), manifest, PAGES)
    inputs = {b.name: image.put(prepared.inputs[b.name].tobytes()) for b in entry.inputs}
    dims = image.put(
        struct.pack(f"<{len(entry.dims)}q", *(prepared.dims[d.name] for d in entry.dims))
    )
    table = [*inputs.values(), logits, *shared]
    return dims, image.put(struct.pack(f"<{len(table)}Q", *table)), len(table), inputs["tokens"]
