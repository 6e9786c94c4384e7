"""What the metadata of a GGUF file says of its layers, for each way in which models mix tokens.

In: Keys. Out: entries of config.json: sizes of heads and feed-forward layers, of latent attention,
of recurrent states. A row of `gguf_architectures` names the function that its models need.
"""

from __future__ import annotations

from typing import Any

from sterna.base.errors import UnsafeFile, UnsupportedModel
from sterna.convert.gguf_keys import Keys

Sizes = dict[str, Any]


def attention_sizes(keys: Keys) -> Sizes:
    """Heads that rotate, and a feed-forward layer."""
    return {
        **_heads(keys),
        "num_key_value_heads": keys.positive(
            "attention.head_count_kv", keys.positive("attention.head_count")
        ),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        **_rotated(keys),
    }


def latent_sizes(keys: Keys) -> Sizes:
    """DeepSeek's: files of 2025 count the latent as one key head, older ones the heads' own."""
    rank, rotated = keys.positive("attention.kv_lora_rank"), keys.positive("rope.dimension_count")
    absorbed = keys.has("attention.key_length_mla")
    key = keys.positive("attention.key_length_mla" if absorbed else "attention.key_length")
    value = keys.positive("attention.value_length_mla" if absorbed else "attention.value_length")
    if key <= rotated:
        raise UnsafeFile(
            f"{keys.file.path} gives keys of {key} numbers, {rotated} of which are rotated: none "
            "would be left for the latent"
        )
    return {
        "intermediate_size": keys.positive("feed_forward_length"),
        "num_attention_heads": keys.positive("attention.head_count"),
        "num_key_value_heads": keys.positive("attention.head_count"),
        "q_lora_rank": keys.count("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": value,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
    }


def mamba_sizes(keys: Keys) -> Sizes:
    """Layers of Mamba-2 and nothing else."""
    inner, heads = keys.positive("ssm.inner_size"), keys.positive("ssm.time_step_rank")
    return {
        "expand": _times(keys, inner),
        "num_heads": heads,
        "head_dim": max(1, inner // heads),
        "state_size": keys.positive("ssm.state_size"),
        "n_groups": keys.positive("ssm.group_count", 1),
        "conv_kernel": keys.positive("ssm.conv_kernel"),
        "use_bias": keys.holds("ssm_in.bias"),
        "use_conv_bias": keys.holds("ssm_conv1d.bias"),
    }


def hybrid_sizes(keys: Keys) -> Sizes:
    """Granite 4.0 H: layers without key heads are Mamba-2's."""
    inner, heads = keys.positive("ssm.inner_size"), keys.positive("ssm.time_step_rank")
    each = keys.each("attention.head_count_kv")
    found = {count for count in each if count}
    if len(found) != 1:
        raise UnsupportedModel(
            f"{keys.file.path}: {keys.prefix}.attention.head_count_kv gives layers "
            f"{len(found)} numbers of key heads; models with one are computed"
        )
    turned = keys.has("rope.scaling.finetuned") and keys.flag("rope.scaling.finetuned")
    width = keys.positive("feed_forward_length")
    return {
        **_heads(keys),
        "num_key_value_heads": found.pop(),
        "layer_types": ["attention" if count else "mamba" for count in each],
        "position_embedding_type": "rope" if turned else "nope",
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "shared_intermediate_size": keys.count("expert_shared_feed_forward_length", 0) or width,
        "num_local_experts": keys.count("expert_count", 0),
        "num_experts_per_tok": keys.count("expert_used_count", 0),
        "mamba_expand": _times(keys, inner),
        "mamba_n_heads": heads,
        "mamba_d_head": max(1, inner // heads),
        "mamba_d_state": keys.positive("ssm.state_size"),
        "mamba_n_groups": keys.positive("ssm.group_count", 1),
        "mamba_d_conv": keys.positive("ssm.conv_kernel"),
        "mamba_proj_bias": keys.holds("ssm_in.bias"),
        "mamba_conv_bias": keys.holds("ssm_conv1d.bias"),
    }


def delta_sizes(keys: Keys) -> Sizes:
    """Qwen3-Next and 3.5: heads of the layers that attend, and of those with gated delta nets."""
    inner, heads = keys.positive("ssm.inner_size"), keys.positive("ssm.time_step_rank")
    return {
        **attention_sizes(keys),
        "full_attention_interval": keys.positive("full_attention_interval", 4),
        "linear_num_key_heads": keys.positive("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": keys.positive("ssm.state_size"),
        "linear_value_head_dim": max(1, inner // heads),
        "linear_conv_kernel_dim": keys.positive("ssm.conv_kernel"),
    }


def rwkv_sizes(keys: Keys) -> Sizes:
    """RWKV-7: ranks of the small products stand among the keys of attention."""
    return {
        "intermediate_size": keys.positive("feed_forward_length"),
        "head_dim": keys.positive("wkv.head_size"),
        "decay_low_rank_dim": keys.positive("attention.decay_lora_rank"),
        "a_low_rank_dim": keys.positive("attention.iclr_lora_rank"),
        "v_low_rank_dim": keys.positive("attention.value_residual_mix_lora_rank"),
        "gate_low_rank_dim": keys.positive("attention.gate_lora_rank"),
    }


def _heads(keys: Keys) -> Sizes:
    heads, hidden = keys.positive("attention.head_count"), keys.positive("embedding_length")
    dim = keys.positive("attention.key_length", max(1, hidden // heads))
    if keys.positive("attention.value_length", dim) != dim:
        raise UnsupportedModel(
            f"{keys.file.path} has keys and values of different lengths, which no family computes"
        )
    experts = "expert_feed_forward_length"  # the only width of models that have experts everywhere
    return {
        "intermediate_size": keys.positive(
            "feed_forward_length", keys.positive(experts) if keys.has(experts) else None
        ),
        "num_attention_heads": heads,
        "head_dim": dim,
    }


def _rotated(keys: Keys) -> Sizes:
    """The part of a head that is rotated, where the file says it."""
    if not keys.has("rope.dimension_count"):
        return {}
    return {
        "partial_rotary_factor": keys.positive("rope.dimension_count") / _heads(keys)["head_dim"]
    }


def _times(keys: Keys, inner: int) -> int:
    hidden = keys.positive("embedding_length")
    if inner % hidden:
        raise UnsupportedModel(
            f"{keys.file.path} has recurrent layers of {inner} channels for {hidden} hidden ones; "
            "multiples are computed"
        )
    return inner // hidden
