"""Checkpoints of other programs, built from the published descriptions of their formats.

In: a tiny config. Out: a folder in one of the formats, and the weights in it as float64, computed
here from the codes by the format's own formula: no code of the package takes part.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from source_folder import ROUND, add_tokenizer, tiny

CONFIG: dict[str, Any] = {**ROUND, "num_hidden_layers": 2}
E4M3 = ml_dtypes.float8_e4m3fn
_NAMES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64", "uint32": "U32",
}  # fmt: skip
_ROLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        body = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(body)],
        }
        data += body
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@dataclass
class Made:
    """`tensors` go into the file; `weights` are what they mean."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


Module = Callable[[Made, str, tuple[int, int], np.random.Generator], None]


def write_packed(
    folder: Path, section: Mapping[str, Any], module: Module, *, key: str = "quantization_config",
    config: Mapping[str, Any] = CONFIG, everything: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """A model whose linear layers (`everything`: embedding and head too) `module` makes."""
    folder.mkdir(parents=True, exist_ok=True)
    made, rng = Made(), np.random.default_rng(5)
    for name, weight in tiny.weights(config).items():
        stem = name.removesuffix(".weight")
        linear = stem.endswith(_ROLE)
        if weight.ndim == 2 and (linear or everything):
            module(made, stem, weight.shape, rng)
        else:
            made.tensors[name] = weight.astype(np.float16)
            made.weights[name] = made.tensors[name].astype(np.float64)
    write_safetensors(folder / "model.safetensors", made.tensors)
    (folder / "config.json").write_text(json.dumps({**config, key: section}))
    add_tokenizer(folder)
    return made.weights


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis as a stream of bits, lowest first, in u32."""
    flat = (codes[..., None] >> np.arange(bits)) & 1
    stream = flat.reshape(*codes.shape[:-1], -1).astype(np.uint8)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


def grids(
    rng: np.random.Generator, shape: tuple[int, int], group: int, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random codes [N, K], f16 scales [N, G] and zero points [N, G]."""
    rows, depth = shape
    codes = rng.integers(0, 1 << bits, shape)
    scales = rng.uniform(0.5, 1, (rows, depth // group)) * (0.3 / (1 << bits))
    zeros = rng.integers(0, 1 << bits, scales.shape)
    return codes, scales.astype(np.float16), zeros


def gptq(
    bits: int, group: int, *, sym: bool, act_order: bool, version: str = "gptq"
) -> tuple[dict[str, Any], Module]:
    """qweight packs K, qzeros N; zeros are stored less 1 in the first version."""
    section = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym,
        "desc_act": act_order, "checkpoint_format": version, "lm_head": False,
    }  # fmt: skip

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        depth = shape[1]
        size = depth if group == -1 else group
        codes, scales, zeros = grids(rng, shape, size, bits)
        if sym:
            zeros[:] = 1 << (bits - 1)
        index = np.arange(depth) // size
        if act_order:
            index = rng.permutation(index)
        stored = (zeros - (version == "gptq")) & ((1 << bits) - 1)
        made.tensors |= {
            f"{stem}.qweight": words(codes, bits).view(np.int32).T.copy(),
            f"{stem}.qzeros": words(stored.T, bits).view(np.int32),
            f"{stem}.scales": scales.T.copy(),
            f"{stem}.g_idx": index.astype(np.int32),
        }
        made.weights[f"{stem}.weight"] = (codes - zeros[:, index]) * scales.astype(np.float64)[
            :, index
        ]

    return section, module


def awq(group: int) -> tuple[dict[str, Any], Module]:
    section = {
        "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm",
        "zero_point": True,
    }  # fmt: skip
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(codes: np.ndarray) -> np.ndarray:
        """[R, N] -> [R, N / 8], the nibble i of a word being output order[i]."""
        lanes = codes.reshape(codes.shape[0], -1, 8)[..., order].reshape(codes.shape)
        return words(lanes, 4).view(np.int32)

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        codes, scales, zeros = grids(rng, shape, group, 4)
        made.tensors |= {
            f"{stem}.qweight": pack(codes.T),
            f"{stem}.qzeros": pack(zeros.T),
            f"{stem}.scales": scales.T.copy(),
        }
        wide = np.repeat(zeros, group, 1), np.repeat(scales.astype(np.float64), group, 1)
        made.weights[f"{stem}.weight"] = (codes - wide[0]) * wide[1]

    return section, module


def compressed(
    bits: int, group: int | None, *, symmetric: bool, layout: str = "pack-quantized"
) -> tuple[dict[str, Any], Module]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group,
        "strategy": "group" if group else "channel",
    }  # fmt: skip
    section = {
        "quant_method": "compressed-tensors", "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }  # fmt: skip
    middle = 1 << (bits - 1)

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        size = group or shape[1]
        codes, scales, zeros = grids(rng, shape, size, bits)
        if symmetric:
            zeros[:] = middle
        if layout == "pack-quantized":
            made.tensors[f"{stem}.weight_packed"] = words(codes, bits).view(np.int32)
            made.tensors[f"{stem}.weight_shape"] = np.array(shape, np.int64)
            if not symmetric:
                packed = words(zeros.T, bits).view(np.int32).T
                made.tensors[f"{stem}.weight_zero_point"] = packed
        else:
            made.tensors[f"{stem}.weight"] = (codes - middle).astype(np.int8)
        made.tensors[f"{stem}.weight_scale"] = scales
        wide = np.repeat(zeros, size, 1), np.repeat(scales.astype(np.float64), size, 1)
        made.weights[f"{stem}.weight"] = (codes - wide[0]) * wide[1]

    return section, module


def fp8(kind: str) -> tuple[dict[str, Any], Module]:
    """`kind` is "tensor", "row" or "block"."""
    section: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if kind == "block":
        section["weight_block_size"] = [128, 128]

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        values = rng.normal(0, 20, shape).astype(E4M3)
        counts = {"tensor": (1, 1), "row": (shape[0], 1),
                  "block": (-(-shape[0] // 128), -(-shape[1] // 128))}[kind]  # fmt: skip
        scales = (rng.uniform(0.5, 1, counts) / 300).astype(np.float32)
        sizes = -(-shape[0] // counts[0]), -(-shape[1] // counts[1])
        wide = np.repeat(np.repeat(scales.astype(np.float64), sizes[0], 0), sizes[1], 1)
        made.tensors[f"{stem}.weight"] = values
        title = "weight_scale_inv" if kind == "block" else "weight_scale"
        made.tensors[f"{stem}.{title}"] = scales if kind != "tensor" else scales.reshape(1)
        made.weights[f"{stem}.weight"] = values.astype(np.float64) * wide[: shape[0], : shape[1]]

    return section, module


NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip


def nf4(*, nested: bool) -> tuple[dict[str, Any], Module]:
    section = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
    }  # fmt: skip

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        codes = rng.integers(0, 16, shape)
        flat = codes.reshape(-1)
        count = flat.size // 64
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16",
                                 "shape": list(shape)}  # fmt: skip
        at = f"{stem}.weight"
        if nested:
            table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            picks = rng.integers(0, 256, count).astype(np.uint8)
            outer = rng.uniform(0.01, 0.05, -(-count // 256)).astype(np.float32)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.125}
            scales = table[picks] * np.repeat(outer, 256)[:count] + np.float32(0.125)
            made.tensors |= {f"{at}.absmax": picks, f"{at}.nested_absmax": outer,
                             f"{at}.nested_quant_map": table}  # fmt: skip
        else:
            scales = rng.uniform(0.05, 0.2, count).astype(np.float32)
            made.tensors[f"{at}.absmax"] = scales
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        made.tensors |= {
            at: (flat[0::2] << 4 | flat[1::2]).astype(np.uint8)[:, None],
            f"{at}.quant_map": NF4,
            f"{at}.quant_state.bitsandbytes__nf4": text,
        }
        values = NF4.astype(np.float64)[flat] * np.repeat(scales.astype(np.float64), 64)
        made.weights[at] = values.reshape(shape)

    return section, module


def int8_rows() -> tuple[dict[str, Any], Module]:
    section = {"quant_method": "bitsandbytes", "load_in_8bit": True}

    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        codes = rng.integers(-127, 128, shape)
        scales = rng.uniform(0.1, 0.3, shape[0]).astype(np.float32)
        made.tensors |= {f"{stem}.weight": codes.astype(np.int8), f"{stem}.SCB": scales,
                         f"{stem}.weight_format": np.array(0, np.uint8)}  # fmt: skip
        made.weights[f"{stem}.weight"] = codes * scales.astype(np.float64)[:, None] / 127

    return section, module


def mlx(bits: int, group: int) -> tuple[dict[str, Any], Module]:
    def module(made: Made, stem: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
        codes, scales, zeros = grids(rng, shape, group, bits)
        biases = (-scales.astype(np.float64) * zeros).astype(np.float16)
        made.tensors |= {f"{stem}.weight": words(codes, bits), f"{stem}.scales": scales,
                         f"{stem}.biases": biases}  # fmt: skip
        made.weights[f"{stem}.weight"] = codes * np.repeat(
            scales.astype(np.float64), group, 1
        ) + np.repeat(biases.astype(np.float64), group, 1)

    return {"group_size": group, "bits": bits}, module
