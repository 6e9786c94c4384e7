"""CodeGen: GPT-J with q, v and k in four blocks of one matrix, as four machines had them."""

from __future__ import annotations

from typing import Any

from sterna.models.config import Fields
from sterna.models.gptj import GPTJ


class CodeGen(GPTJ):
    """Heads must be a multiple of the blocks."""

    MODEL_TYPES = ("codegen",)
    ARCHITECTURES = ("CodeGenForCausalLM",)
    IGNORED = ("*.attn.causal_mask", *GPTJ.IGNORED)

    @classmethod
    def own(cls, f: Fields) -> dict[str, Any]:
        f.refuse_uneven("num_attention_heads", 4)
        return {"projections": "blocks"}
