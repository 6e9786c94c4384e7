"""What is to be known of one value of `general.architecture`: a record, and what its entries mean.

The records themselves are rows of `gguf_architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sterna.convert.gguf_keys import Keys
from sterna.convert.gguf_layouts import Undo, less_one
from sterna.convert.gguf_sizes import attention_sizes

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Norms whose weights are around 0 in checkpoints and around 1 in files.
ADDED_ONE: Mapping[str, Undo] = dict.fromkeys(
    (
        *("model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight"),
        *("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
        *("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    ),
    less_one,
)
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
Paths = str | tuple[str, ...]


def _fixed(paths: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(paths))


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of general.architecture.

    `layer` maps the names of a layer's tensors to paths under `layers` and its number, `ends` all
    others to whole paths; a name with its leaf is that of a whole tensor. Several paths are parts
    of one tensor; several names of one path are parts that the checkpoint joins, in the order of
    the table. "{}" in a path stands for one of what the file stacks: `stacks` says what they are
    called, where not by number. `undo` says for a path, with its leaf or without, what the
    converter did to the tensor.

    `sizes` reads what layers are like; `config` is what the architecture implies besides the keys
    of the file, `numbers`, `counts` and `flags` are keys of its own, `present` are flags that a
    tensor's presence tells. `epsilon` is what config.json calls the norms' own. `implied` makes of
    the config what no key of the file says, or not in these words. `unread` are tensors that the
    file holds and nothing reads. `other` is the row of files for which `is_other` holds.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, Paths] = field(default_factory=lambda: _fixed(LAYER))
    ends: Mapping[str, Paths] = field(default_factory=lambda: _fixed(ENDS))
    layers: str = "model.layers"
    stacks: Mapping[str, str] = field(default_factory=dict)
    undo: Mapping[str, Undo] = field(default_factory=dict)
    sizes: Callable[[Keys], dict[str, Any]] = attention_sizes
    config: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    epsilon: str = "rms_norm_eps"
    implied: Callable[[Mapping[str, Any], Keys], dict[str, Any]] | None = None
    unread: tuple[str, ...] = ()
    other: Architecture | None = None
    is_other: Callable[[Keys], bool] = lambda keys: False
