"""What a GGUF file says of its model, in Hugging Face's words: config.json and tensor names.

In: an opened file. Out: config.json and generation_config.json, and for each tensor of a
checkpoint the file's own tensor with what must be undone. What differs from one architecture to
the next is in the table `gguf_architectures`; whether its family can be computed is for `models`
to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from sterna.base.errors import (
    MissingTensor,
    ShapeMismatch,
    UnexpectedTensor,
    UnsupportedModel,
)
from sterna.checkpoint.gguf import GgufFile, GgufTensor
from sterna.convert.gguf_architecture import ROPE_TABLES, Architecture, Paths
from sterna.convert.gguf_architectures import ARCHITECTURES
from sterna.convert.gguf_keys import Keys
from sterna.convert.gguf_layouts import Undo, joined
from sterna.convert.gguf_vocabulary import end_ids

_TOWER = "clip"  # general.architecture of every tower's file
_POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # pooling_type; 0 says nothing, 4 is of rankers


@dataclass(frozen=True, slots=True)
class Mapped:
    """A tensor under the checkpoint's name: those of the file it is made of, and how."""

    name: str
    tensors: tuple[GgufTensor, ...]
    undo: Undo = joined


def architecture(file: GgufFile) -> Architecture:
    """The row of general.architecture; UnsupportedModel where there is none."""
    name = file.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if name == _TOWER:
        raise UnsupportedModel(
            f"{file.path} holds what looks at images for another model (mmproj); name the file of "
            "the text model, or for images take the Hugging Face folder"
        )
    if found is None:
        raise UnsupportedModel(
            f"{file.path} holds a model of the architecture {str(name)[:80]!r}; GGUF files of "
            f"{', '.join(ARCHITECTURES)} are read: for others, take the Hugging Face folder"
        )
    return found.other if found.other is not None and found.is_other(Keys(file)) else found


def config_json(file: GgufFile) -> dict[str, Any]:
    """The file's config.json. Raises UnsafeFile for keys that are absent or no numbers."""
    row = architecture(file)
    keys = Keys(file)
    config: dict[str, Any] = {
        "architectures": [row.class_name],
        "model_type": row.model_type,
        "hidden_size": keys.positive("embedding_length"),
        "num_hidden_layers": keys.layers,
        "max_position_embeddings": _positions(keys),
        **_epsilon(keys, row),
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **row.sizes(keys),
        **row.config,
    }
    config |= {key: keys.holds(name) for key, name in row.present.items()}
    for title, key in (("attn_logit_softcapping", "attn_logit_softcapping"),
                       ("final_logit_softcapping", "final_logit_softcapping")):  # fmt: skip
        if keys.has(key):
            config[title] = keys.number(key, 0.0)
    if keys.has("attention.sliding_window") and keys.count("attention.sliding_window"):
        config["sliding_window"] = keys.positive("attention.sliding_window")
    for title, key in row.counts.items():
        if keys.has(key):
            config[title] = keys.count(key)
    for title, key in row.flags.items():
        if keys.has(key):
            config[title] = keys.flag(key)
    for title, key in row.numbers.items():
        if keys.has(key):
            config[title] = keys.number(key, 0.0)
    config |= row.implied(config, keys) if row.implied is not None else {}
    return {**config, **_rope(file, keys, config), **_pooling(keys), **_token_ids(file)}


def _epsilon(keys: Keys, row: Architecture) -> dict[str, float]:
    """What norms add to a variance; the file calls it by the kind of its norms."""
    kinds = ["layer_norm_rms_epsilon", "layer_norm_epsilon"]
    if row.epsilon != "rms_norm_eps":
        kinds.reverse()
    known = next((kind for kind in kinds if keys.has(f"attention.{kind}")), kinds[0])
    return {row.epsilon: keys.number(f"attention.{known}", 1e-5)} if row.epsilon else {}


def _positions(keys: Keys) -> int:
    """The longest context: as many positions as were learned, where they were."""
    learned = keys.file.tensors.get("position_embd.weight")
    return keys.positive("context_length") if learned is None else learned.shape[0]


def _pooling(keys: Keys) -> dict[str, Any]:
    """How an embedding model makes one vector of a text's; programs for such files normalize it."""
    kind = keys.count("pooling_type", 0)
    if kind and kind not in _POOLINGS:
        raise UnsupportedModel(
            f"{keys.file.path} ranks texts or pools in a way of its own "
            f"({keys.prefix}.pooling_type {kind}); {', '.join(_POOLINGS.values())} are computed"
        )
    return {"sentence_pooling": _POOLINGS[kind], "sentence_normalize": True} if kind else {}


def generation_config_json(file: GgufFile) -> dict[str, Any]:
    """The ids that start and end a text, all of them."""
    ids = _token_ids(file)
    ends = end_ids(file.metadata, str(file.path))
    return {**ids, **({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})}


def checkpoint_tensors(file: GgufFile) -> dict[str, Mapped]:
    """Every tensor by the checkpoint's name. Raises UnexpectedTensor for one without a name."""
    row = architecture(file)
    keys = Keys(file)
    found: dict[str, Mapped] = {}
    order = {own: i for i, own in enumerate((*row.ends, *row.layer))}
    names = sorted(file.tensors, key=lambda name: order.get(_own(name).rpartition(".")[0], 0))
    for name in names:
        if name in ROPE_TABLES or name in row.unread or keys.guesses(name):
            continue
        mapped = list(_mapped(name, file.tensors[name], row))
        if not mapped:
            raise UnexpectedTensor(
                f"{file.path} holds the tensor {name[:200]!r}, which Sterna does not know in "
                f"models of the architecture {file.metadata['general.architecture']}"
            )
        for own in mapped:
            before = found[own.name].tensors if own.name in found else ()
            found[own.name] = replace(own, tensors=(*before, *own.tensors))
    if not found:
        raise MissingTensor(f"{file.path} holds a vocabulary and no weights")
    return found


def _mapped(name: str, tensor: GgufTensor, row: Architecture) -> Iterator[Mapped]:
    """A tensor of the file under the checkpoint's name for it, or for each of its parts."""
    own = _own(name)
    prefix = f"{row.layers}.{int(name.split('.')[1])}." if own != name else ""
    table = row.layer if prefix else row.ends
    for path in _paths(own, table):
        undo = row.undo.get(path, row.undo.get(path.rpartition(".")[0], joined))
        if "{}" not in path:
            yield Mapped(prefix + path, (tensor,), undo)
            continue
        for label, part in _apart(tensor, row.stacks.get(path)):
            yield Mapped(prefix + path.format(label), (part,), undo)


def _own(name: str) -> str:
    """A tensor's name without its layer."""
    parts = name.split(".")
    in_layer = len(parts) > 2 and parts[0] == "blk" and parts[1].isdecimal()
    return ".".join(parts[2:]) if in_layer else name


def _paths(own: str, table: Mapping[str, Paths]) -> list[str]:
    if own in table:
        return _listed(table[own])
    stem, _, leaf = own.rpartition(".")
    if leaf not in ("weight", "bias") or stem not in table:
        return []
    return [f"{path}.{leaf}" for path in _listed(table[stem])]


def _listed(paths: Paths) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _apart(tensor: GgufTensor, labels: str | None) -> Iterator[tuple[str, GgufTensor]]:
    """Each slice of a stack [parts, ...], such as an expert's, with what it is called."""
    count, *shape = tensor.shape
    if not shape or (labels is not None and len(labels) != count):
        raise ShapeMismatch(
            f"{tensor.rows.path}: {tensor.name} has the shape {list(tensor.shape)}, which is no "
            f"stack of {len(labels) if labels else 'experts'}"
        )
    inner = prod(shape[:-1])  # rows of bytes that a part has
    for i in range(count):
        rows = tensor.rows.rows(i * inner, (i + 1) * inner)
        yield labels[i] if labels else str(i), replace(tensor, shape=tuple(shape), rows=rows)


def file_type(file: GgufFile) -> str:
    """What people call the file's mixture of types, such as "q4_k_m"; "gguf" where unnamed."""
    return _FILE_TYPES.get(file.metadata.get("general.file_type", -1), "mixed")


# general.file_type, as ggml names it
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k", 21: "q2_k_s", 25: "iq4_nl", 32: "bf16", 38: "mxfp4_moe",
}  # fmt: skip


def _vocab_size(file: GgufFile) -> int:
    """Rows of the embedding; a file without tensors has as many tokens as it lists."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        return embedding.shape[0]
    return len(file.metadata.get("tokenizer.ggml.tokens", ()))


def _token_ids(file: GgufFile) -> dict[str, int]:
    ids = {}
    for key, title in (("bos", "bos_token_id"), ("eos", "eos_token_id"),
                       ("padding", "pad_token_id")):  # fmt: skip
        value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(value) is int and 0 <= value < 2**31:
            ids[title] = value
    return ids


_YARN = {
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
}


def _rope(file: GgufFile, keys: Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the rotation is stretched: a table of factors in the file, or a named scaling."""
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:
        return {"rope_scaling": _llama3_scaling(file, factors, config)}
    long, short = (file.tensors.get(name) for name in ROPE_TABLES[1:])
    original = keys.get("rope.scaling.original_context_length")
    if long is not None and short is not None:
        return {
            "rope_scaling": {
                "type": "longrope",
                "long_factor": _floats(long).tolist(),
                "short_factor": _floats(short).tolist(),
            },
            "original_max_position_embeddings": original,
        }
    kind = keys.get("rope.scaling.type")
    if kind in (None, "none"):
        return {"rope_scaling": None} if "rope_scaling" in config else {}
    scaling = {"rope_type": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        own = {title: key for title, key in _YARN.items() if keys.has(key)}
        scaling |= {title: keys.number(key, 0.0) for title, key in own.items()}
    return {"rope_scaling": {**scaling, **config.get("rope_scaling", {})}}


def _floats(tensor: GgufTensor) -> np.ndarray[Any, Any]:
    if tensor.type.name != "F32":
        raise UnsupportedModel(f"{tensor.rows.path}: {tensor.name} must be F32")
    return tensor.rows.read().view("<f4").reshape(-1)


def _llama3_scaling(
    file: GgufFile, factors: GgufTensor, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Llama 3's scaling from the divisors it gives; refused where they are not its own."""
    found = _floats(factors)
    half = config.get("head_dim", 0) // 2
    for original, high in ((8192, 4.0), (4096, 4.0), (8192, 1.0)):  # the last is Llama 4's
        scaling = {
            "rope_type": "llama3",
            "factor": float(found.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        wanted = _llama3_divisors(scaling, config.get("rope_theta", 10000.0), half)
        if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4):
            return scaling
    raise UnsupportedModel(
        f"{file.path} stretches its rotary frequencies by a table (rope_freqs.weight) that is "
        "not Llama's; take the Hugging Face folder"
    )


def _llama3_divisors(scaling: Mapping[str, Any], theta: float, half: int) -> np.ndarray[Any, Any]:
    """What llama3 scaling divides each frequency by, as llama.cpp's converter writes it."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    length = 2 * np.pi * theta ** (np.arange(half) / half)
    smooth = (original / length - low) / (high - low) if high > low else np.ones_like(length)
    between = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(length > original / low, factor, between)
    whole: np.ndarray[Any, Any] = np.where(length < original / high, 1.0, divisors)
    return whole
