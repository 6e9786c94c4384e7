"""A model small enough to write by hand: C for every input, the cache, both kinds of weights.

The logit of word v at a token is `bias[v] + sum over the sequence's cached tokens x so far of
weight[v][x % 3]`; all numbers are small integers, so float32 is exact whatever the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import (
    FORMAT,
    Buffer,
    Dim,
    Entry,
    Kernel,
    KVCache,
    Launch,
    Manifest,
    Model,
    Param,
    encode,
)
from sterna.base.target import host_target
from sterna.codegen.embed import manifest_source, pool_source
from sterna.codegen.toolchain import compile_library
from sterna.runtime.executable import StepInput

VOCAB, PAGE, TILE, PAGE_BYTES = 21, 4, 8, 64
MOST = {"n": 40, "b": 6, "p": 64, "r": 40, "t": 40}

SOURCE = """
enum { VOCAB = 21, PAGE = 4, TILE = 8, PAGE_INTS = 16 };
typedef struct {
    Pool *pool;
    const i32 *tokens, *positions, *seq_ids, *page_indptr, *page_table, *logit_rows;
    const i32 *tile_start, *tile_size, *tile_seq;
    float *logits;
    i32 *cache;
    const float *weight, *bias;
    i32 *counts;
} Step;

static i32 *slot(const Step *s, i32 seq, i32 position) {
    i32 page = s->page_table[s->page_indptr[seq] + position / PAGE];
    return s->cache + (i64)page * PAGE_INTS + position % PAGE;
}

static void append(const void *args, i64 begin, i64 end, i32 tid) {
    const Step *s = args;
    (void)tid;
    for (i64 tile = begin; tile < end; tile++) {
        for (i32 i = 0; i < s->tile_size[tile]; i++) {
            i32 token = s->tile_start[tile] + i;
            *slot(s, s->tile_seq[tile], s->positions[token]) += s->tokens[token];
        }
    }
}

static void head(const void *args, i64 begin, i64 end, i32 tid) {
    const Step *s = args;
    i32 *counts = thread_scratch(s->pool, tid);
    for (i64 item = begin; item < end; item++) {
        i64 row = item / VOCAB, word = item % VOCAB;
        i32 token = s->logit_rows[row];
        counts[0] = counts[1] = counts[2] = 0;
        for (i32 p = 0; p <= s->positions[token]; p++)
            counts[*slot(s, s->seq_ids[token], p) % 3]++;
        float sum = s->bias[word];
        for (i32 k = 0; k < 3; k++)
            sum += s->weight[(word / TILE * 3 + k) * TILE + word % TILE] * (float)counts[k];
        s->logits[item] = sum + (float)s->counts[0];
    }
}

static void run(Pool *pool, void *const *b, void *arena, i64 tiles, i64 rows) {
    Step s = {pool, b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10],
              b[11], b[12], arena};
    s.counts[0] = 0;
    parallel(pool, append, &s, tiles, 1);
    parallel(pool, head, &s, rows * VOCAB, 4);
}
"""
ENTRY = """
EXPORT i32 sterna_entry_{name}(Pool *pool, void *const *b, void *arena, const i64 *dims);
EXPORT i32 sterna_entry_{name}(Pool *pool, void *const *b, void *arena, const i64 *dims) {{
    run(pool, b, arena, dims[4], dims[3]);
    return {code};
}}
"""
_INPUTS = {
    "tokens": "n",
    "positions": "n",
    "seq_ids": "n",
    "page_indptr": "b + 1",
    "page_table": "p",
    "logit_rows": "r",
    "tile_start": "t",
    "tile_size": "t",
    "tile_seq": "t",
}


def toy_entry(name: str, most_tokens: int) -> Entry:
    limits = {**MOST, "n": most_tokens, "r": most_tokens}
    return Entry(
        name=name,
        symbol=f"sterna_entry_{name}",
        dims=tuple(Dim(d, 1 if d in "nbp" else 0, hi) for d, hi in limits.items()),
        inputs=tuple(Buffer(n, "i32", (size,)) for n, size in _INPUTS.items()),
        outputs=(Buffer("logits", "f32", ("r", str(VOCAB))),),
        arena=(Buffer("counts", "i32", ("1",)),),
        arena_bytes=4,
        scratch_bytes=12,
        steps=(Launch("append", ("tokens",)),),
    )


def toy_manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        format=FORMAT,
        sterna="0",
        target=host_target().spec,
        features=(),
        model=Model(
            model_type="toy",
            quantization="q0f32",
            fingerprint="0",
            vocab_size=VOCAB,
            context_window_size=64,
            prefill_chunk_size=40,
            max_batch_size=6,
        ),
        kv_cache=KVCache(
            layers=1, kv_heads=1, head_dim=1, page_size=PAGE, dtype="i32", page_bytes=PAGE_BYTES
        ),
        params=(Param("w", "f32", (VOCAB, 3), TILE), Param("bias", "f32", (VOCAB,), TILE)),
        entries=(toy_entry("prefill", 40), toy_entry("decode", 4), toy_entry("verify", 8)),
        kernels=(Kernel("head", "head", "", "r * 21", "r * 84", "r"),),
    )
    return msgspec.structs.replace(manifest, **changes)


def build_toy(
    folder: Path,
    manifest: Manifest | None = None,
    *,
    edit: tuple[str, str] = ("", ""),
    code: int = 0,
) -> Path:
    """The library, its C text changed by `edit`, its entries returning `code`."""
    manifest = toy_manifest() if manifest is None else manifest
    entries = [ENTRY.format(name=name, code=code) for name in ("prefill", "decode", "verify")]
    text = pool_source() + manifest_source(encode(manifest)) + SOURCE + "".join(entries)
    assert edit[0] in text
    library = folder / f"toy{host_target().suffix}"
    compile_library(text.replace(*edit) if edit[0] else text, host_target(), library)
    return library


@dataclass(frozen=True)
class Tensor:
    """A WeightReader over an array."""

    array: NDArray[Any]

    def read(self) -> NDArray[Any]:
        return self.array


def toy_weights() -> dict[str, Tensor]:
    weight = np.arange(VOCAB * 3, dtype=np.float32).reshape(VOCAB, 3) % 11 - 5
    return {"w": Tensor(weight), "bias": Tensor(np.arange(VOCAB, dtype=np.float32)[::-1].copy())}


def toy_logits(history: list[int]) -> NDArray[np.float32]:
    """What the model says after these tokens, straight from its definition."""
    weight, bias = toy_weights()["w"].array, toy_weights()["bias"].array
    total: NDArray[np.float32] = bias + sum(weight[:, token % 3] for token in history)
    return total


def ints(values: Any) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def toy_step(
    sequences: list[tuple[list[int], int, list[int]]], rows: list[int] | None = None
) -> StepInput:
    """A batch of (new tokens, tokens cached before, pages); logits of `rows`, else of all."""
    tokens = [token for new, _, _ in sequences for token in new]
    return StepInput(
        tokens=ints(tokens),
        positions=ints([start + i for new, start, _ in sequences for i in range(len(new))]),
        seq_indptr=ints(np.cumsum([0, *(len(new) for new, _, _ in sequences)])),
        page_indptr=ints(np.cumsum([0, *(len(pages) for _, _, pages in sequences)])),
        page_table=ints([page for _, _, pages in sequences for page in pages]),
        logit_rows=ints(range(len(tokens)) if rows is None else rows),
    )


def with_entry(manifest: Manifest, index: int, **changes: Any) -> Manifest:
    entries = list(manifest.entries)
    entries[index] = msgspec.structs.replace(entries[index], **changes)
    return msgspec.structs.replace(manifest, entries=tuple(entries))
