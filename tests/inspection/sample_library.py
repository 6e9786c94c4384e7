"""A library as the compiler would describe it, by hand: two layers, 64 wide, in q4f16_1.

Only its manifest is real: nothing that looks inside executes anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sterna.base.artifact import (
    FORMAT,
    MANIFEST_MARK,
    Buffer,
    Dim,
    Entry,
    Kernel,
    KVCache,
    Launch,
    Manifest,
    Model,
    Param,
    Repeat,
    encode,
)

LAYERS, HIDDEN, MLP, VOCAB, WINDOW, CHUNK, PAGE = 2, 64, 128, 512, 256, 64, 16
_INPUTS = {"tokens": "n", "positions": "n", "page_indptr": "b + 1", "page_table": "p"}


def _packed(name: str, rows: int, depth: int) -> tuple[Param, ...]:
    return (
        Param(name=f"{name}.q_weight", dtype="u32", shape=(rows, depth // 8), row_tile=8),
        Param(name=f"{name}.q_scale", dtype="f16", shape=(rows, depth // 32), row_tile=8),
    )


def _params() -> tuple[Param, ...]:
    found = [*_packed("model.embed_tokens", VOCAB, HIDDEN)]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        found += _packed(f"{layer}.self_attn.qkv_proj", 3 * HIDDEN, HIDDEN)
        found += _packed(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN)
        found += _packed(f"{layer}.mlp.gate_up_proj", 2 * MLP, HIDDEN)
        found += _packed(f"{layer}.mlp.down_proj", HIDDEN, MLP)
        found.append(Param(name=f"{layer}.input_layernorm.weight", dtype="f16", shape=(HIDDEN,)))
    found += _packed("lm_head", VOCAB, HIDDEN)
    return tuple(found)


def _entry(name: str, most: int) -> Entry:
    layer = "model.layers.{i}"
    return Entry(
        name=name,
        symbol=f"sterna_entry_{name}",
        dims=(Dim("n", 1, most), Dim("b", 1, 4), Dim("p", 1, 64), Dim("r", 0, 4), Dim("t", 0, 8)),
        inputs=tuple(Buffer(n, "i32", (size,)) for n, size in _INPUTS.items()),
        outputs=(Buffer("logits", "f32", ("r", str(VOCAB))),),
        arena=(
            Buffer("x", "f32", ("n", str(HIDDEN))),
            Buffer("qkv", "f32", ("n", str(3 * HIDDEN)), most * HIDDEN * 4),
            Buffer("gate_up", "f32", ("n", str(MLP)), most * HIDDEN * 4),
        ),
        arena_bytes=most * HIDDEN * 16,
        scratch_bytes=4096,
        steps=(
            Launch("embed", ("tokens", "model.embed_tokens.q_weight", "x")),
            Repeat(
                var="i",
                count=LAYERS,
                body=(
                    Launch("qkv_proj", ("x", f"{layer}.self_attn.qkv_proj.q_weight", "qkv")),
                    Launch("attention", ("qkv", "kv_cache", "page_table", "x")),
                    Launch("mlp", ("x", f"{layer}.mlp.gate_up_proj.q_weight", "gate_up", "x")),
                ),
            ),
            Launch("logits", ("x", "lm_head.q_weight", "logits")),
        ),
    )


KERNELS = (
    Kernel("embed", "embedding", "", "0", "n * 36", "n"),
    Kernel(
        "qkv_proj",
        "dequantize+matmul+rope",
        "split(acc, n, no, ni, 8)\nvectorize(acc, ni)\nparallel(acc, no)",
        "2 * n * 192 * 64",
        "192 * 36 + n * 1024",
        "24",
    ),
    Kernel("attention", "attention", "", "4 * n * context * 64", "context * 256 + n * 512", "n"),
    Kernel("mlp", "dequantize+matmul", "", "2 * n * 256 * 64", "256 * 36 + n * 1280", "32"),
    Kernel("logits", "dequantize+matmul", "", "2 * r * 512 * 64", "512 * 36 + r * 2304", "64"),
)


def sample(**changes: Any) -> Manifest:
    manifest = Manifest(
        format=FORMAT,
        sterna="0.1.0",
        target="cpu:x86-64-v3-linux",
        features=("avx2", "fma"),
        model=Model(
            model_type="llama",
            quantization="q4f16_1",
            fingerprint="0123456789abcdef0123",
            vocab_size=VOCAB,
            context_window_size=WINDOW,
            prefill_chunk_size=CHUNK,
            max_batch_size=4,
        ),
        kv_cache=KVCache(
            layers=LAYERS, kv_heads=2, head_dim=32, page_size=PAGE, dtype="f16", page_bytes=8192
        ),
        params=_params(),
        entries=(_entry("prefill", CHUNK), _entry("decode", 4)),
        kernels=KERNELS,
    )
    return msgspec.structs.replace(manifest, **changes)


def write(path: Path, manifest: Manifest | None = None) -> Path:
    """A file with the header of a library that ends where it ends, and the manifest inside."""
    data = encode(sample() if manifest is None else manifest)
    body = MANIFEST_MARK + len(data).to_bytes(8, "little") + data + bytes(50)
    header = bytearray(64)
    header[:6], header[18] = b"\x7fELF\x02\x01", 62
    header[40:48] = (len(header) + len(body)).to_bytes(8, "little")  # where its sections begin
    path.write_bytes(bytes(header) + body)
    return path
