"""What a GGUF file says of its model, in Hugging Face's words: config.json and tensor names.

In: an opened file. Out: config.json and generation_config.json, and for each tensor of a
checkpoint the file's own tensor with what must be undone. What differs from one architecture to
the next is in the table `gguf_architectures`; whether its family can be computed is for `models`
to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sterna.base.errors import MissingTensor, UnexpectedTensor, UnsafeFile, UnsupportedModel
from sterna.checkpoint.gguf import GgufFile, GgufTensor
from sterna.convert.gguf_architectures import ARCHITECTURES, ENDS, ROPE_TABLES, Architecture
from sterna.convert.gguf_vocabulary import end_ids


@dataclass(frozen=True, slots=True)
class Mapped:
    """A tensor under the checkpoint's name. `heads` > 0: its rows must be put back in order."""

    name: str
    tensor: GgufTensor
    heads: int = 0
    minus_one: bool = False


def architecture(file: GgufFile) -> Architecture:
    """The row of general.architecture; UnsupportedModel where there is none."""
    name = file.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise UnsupportedModel(
            f"{file.path} holds a model of the architecture {str(name)[:80]!r}; GGUF files of "
            f"{', '.join(ARCHITECTURES)} are read: for others, take the Hugging Face folder"
        )
    experts = file.metadata.get(f"{name}.expert_count")
    return found.sparse if found.sparse is not None and experts else found


def config_json(file: GgufFile) -> dict[str, Any]:
    """The file's config.json. Raises UnsafeFile for keys that are absent or no numbers."""
    row = architecture(file)
    keys = _Keys(file)
    heads = keys.positive("attention.head_count")
    hidden = keys.positive("embedding_length")
    config: dict[str, Any] = {
        "architectures": [row.class_name],
        "model_type": row.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.positive("feed_forward_length"),
        "num_hidden_layers": keys.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.positive("attention.head_count_kv", heads),
        "head_dim": _head_dim(keys, hidden, heads),
        "max_position_embeddings": keys.positive("context_length"),
        **_epsilon(keys, row),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **row.config,
    }
    rotated = keys.positive("rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        config["partial_rotary_factor"] = rotated / config["head_dim"]
    config |= {key: name in file.tensors for key, name in row.present.items()}
    for title, key in (("attn_logit_softcapping", "attn_logit_softcapping"),
                       ("final_logit_softcapping", "final_logit_softcapping")):  # fmt: skip
        if keys.has(key):
            config[title] = keys.number(key, 0.0)
    if keys.has("attention.sliding_window"):
        config["sliding_window"] = keys.positive("attention.sliding_window")
    for title, key in row.counts.items():
        if keys.has(key):
            config[title] = keys.positive(key)
    for title, key in row.flags.items():
        if keys.has(key):
            config[title] = keys.flag(key)
    for title, key in row.numbers.items():
        if keys.has(key):
            config[title] = keys.number(key, 0.0)
    config |= row.implied(config) if row.implied is not None else {}
    return {**config, **_rope(file, keys, config), **_token_ids(file)}


def _epsilon(keys: _Keys, row: Architecture) -> dict[str, float]:
    """What norms add to a variance; the file calls it by the kind of its norms."""
    kind = "layer_norm_rms_epsilon" if row.epsilon == "rms_norm_eps" else "layer_norm_epsilon"
    return {row.epsilon: keys.number(f"attention.{kind}", 1e-5)} if row.epsilon else {}


def generation_config_json(file: GgufFile) -> dict[str, Any]:
    """The ids that start and end a text, all of them."""
    ids = _token_ids(file)
    ends = end_ids(file.metadata, str(file.path))
    return {**ids, **({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})}


def checkpoint_tensors(file: GgufFile) -> dict[str, Mapped]:
    """Every tensor by the checkpoint's name. Raises UnexpectedTensor for one without a name."""
    row = architecture(file)
    keys = _Keys(file)
    heads = keys.positive("attention.head_count")
    key_heads = keys.positive("attention.head_count_kv", heads)
    found: dict[str, Mapped] = {}
    for name, tensor in file.tensors.items():
        if name in ROPE_TABLES or keys.guesses(name):
            continue
        path = _path(name, row)
        if path is None:
            raise UnexpectedTensor(
                f"{file.path} holds the tensor {name[:200]!r}, which Sterna does not know in "
                f"models of the architecture {file.metadata['general.architecture']}"
            )
        mapped = Mapped(path, tensor)
        if path.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:
            mapped = Mapped(path, replace(tensor, shape=(1, *tensor.shape)))  # of one row
        if row.permuted and path.endswith(("q_proj.weight", "q_proj.bias")):
            mapped = Mapped(path, tensor, heads=heads)
        elif row.permuted and path.endswith(("k_proj.weight", "k_proj.bias")):
            mapped = Mapped(path, tensor, heads=key_heads)
        elif row.norms_add_one and path.endswith("norm.weight"):
            mapped = Mapped(path, tensor, minus_one=True)
        found |= {m.name: m for m in (_apart(mapped) if "{}" in path else [mapped])}
    if not found:
        raise MissingTensor(f"{file.path} holds a vocabulary and no weights")
    return found


def _apart(stack: Mapped) -> Iterator[Mapped]:
    """The slice of each expert of a stack [experts, ...], under a name of its own."""
    tensor = stack.tensor
    _, *shape = tensor.shape
    inner = shape[0] if len(shape) > 1 else 1  # rows of bytes that an expert has
    for e in range(tensor.shape[0] if shape else 0):
        rows = tensor.rows.rows(e * inner, (e + 1) * inner)
        own = replace(tensor, shape=tuple(shape), rows=rows)
        yield replace(stack, name=stack.name.format(e), tensor=own)


def file_type(file: GgufFile) -> str:
    """What people call the file's mixture of types, such as "q4_k_m"; "gguf" where unnamed."""
    return _FILE_TYPES.get(file.metadata.get("general.file_type", -1), "mixed")


# general.file_type, as ggml names it
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k", 21: "q2_k_s", 25: "iq4_nl", 32: "bf16", 38: "mxfp4_moe",
}  # fmt: skip


def _path(name: str, row: Architecture) -> str | None:
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if stem in ENDS:
        return f"{ENDS[stem]}.{leaf}"
    parts = stem.split(".")
    if len(parts) != 3 or parts[0] != "blk" or not parts[1].isdecimal():
        return None
    whole, module = row.layer.get(f"{parts[2]}.{leaf}"), row.layer.get(parts[2])
    own = whole if whole is not None else f"{module}.{leaf}" if module is not None else None
    return None if own is None else f"model.layers.{int(parts[1])}.{own}"


class _Keys:
    """Metadata under the architecture's prefix."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.prefix = str(file.metadata.get("general.architecture"))

    @property
    def layers(self) -> int:
        """Layers of the model, without those behind the last that guess tokens ahead."""
        ahead = self.positive("nextn_predict_layers") if self.get("nextn_predict_layers") else 0
        return max(1, self.positive("block_count") - ahead)

    def guesses(self, name: str) -> bool:
        """Whether a tensor belongs to a layer that guesses ahead."""
        parts = name.split(".")
        layer = int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else -1
        return layer >= self.layers and bool(self.get("nextn_predict_layers"))

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.file.metadata

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.prefix}.{key}")

    def positive(self, key: str, default: int | None = None) -> int:
        found = self.get(key)
        if isinstance(found, np.ndarray) and found.size and (found == found[0]).all():
            found = int(found[0])  # a number a layer, all of them equal
        if found is None and default is not None:
            return default
        if isinstance(found, np.ndarray):
            raise UnsupportedModel(
                f"{self.file.path}: {self.prefix}.{key} differs from layer to layer, which no "
                "family computes yet"
            )
        if type(found) is not int or not 0 < found < 2**31:
            raise UnsafeFile(
                f"{self.file.path}: {self.prefix}.{key} must be a positive whole number, "
                f"found {found!r:.40}"
            )
        return found

    def flag(self, key: str) -> bool:
        found = self.get(key)
        if not isinstance(found, bool):
            raise UnsafeFile(
                f"{self.file.path}: {self.prefix}.{key} must be true or false, found {found!r:.40}"
            )
        return found

    def number(self, key: str, default: float) -> float:
        """A float32, as the shortest decimal that means it: 1e-05 and not 9.999999747e-06."""
        found = self.get(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not np.isfinite(found):
            raise UnsafeFile(
                f"{self.file.path}: {self.prefix}.{key} must be a number, found {found!r:.40}"
            )
        return float(str(np.float32(found)))


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    dim = keys.positive("attention.key_length", max(1, hidden // heads))
    if keys.positive("attention.value_length", dim) != dim:
        raise UnsupportedModel(
            f"{keys.file.path} has keys and values of different lengths, which no family computes"
        )
    return dim


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


def _rope(file: GgufFile, keys: _Keys, config: Mapping[str, Any]) -> dict[str, Any]:
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
        return {}
    scaling = {"rope_type": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
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
    half = config["head_dim"] // 2
    for original, high in ((8192, 4.0), (4096, 4.0), (8192, 1.0)):  # the last is Llama 4's
        scaling = {
            "rope_type": "llama3",
            "factor": float(found.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        wanted = _llama3_divisors(scaling, config["rope_theta"], half)
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
