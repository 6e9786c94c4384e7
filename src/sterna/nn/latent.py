"""Multi-head latent attention: keys and values of all heads come from one small vector a token.

The cache holds that latent vector, normalized, and behind it the one rotated key that all heads
share; nothing is ever expanded. A head's query is taken to where the latents live (by its part of
kv_b_proj, transposed), so scores are products with what the cache holds, and what attention gives,
a mean of latents, is taken to the head's values by the other part. That "absorbed" form is
attention with a single key head whose values are a part of its keys.

It is computed so for prompts as well. Expanding the cache for a prompt would need fewer products
there (about a third in attention), but sum in another order: then a prompt's rows would have other
bits than the same tokens one by one, and every step would need room for expanded keys.

Source: DeepSeek-AI 2024, "DeepSeek-V2" (arXiv:2405.04434), section 2.1 and appendix C.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import DType
from sterna.nn.attention import SelfAttention, Step
from sterna.nn.linear import Linear
from sterna.nn.norm import RMSNorm
from sterna.nn.trace import Tensor

_EPS = 1e-6  # of the norms inside, whatever the config says of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """Sizes. Queries come from `query_rank` numbers, or straight from the hidden state if 0.

    A key is `plain` numbers from the latent of `rank` and `rotated` ones that all heads share.
    """

    rank: int
    query_rank: int
    plain: int
    rotated: int
    value: int

    @property
    def key(self) -> int:
        """Elements of a head's query and key."""
        return self.plain + self.rotated

    @property
    def slot(self) -> int:
        """What the cache keeps of a token."""
        return self.rank + self.rotated


class LatentAttention(SelfAttention):
    """softmax(scale * q k^T) v over the cached latents, causal."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        o: LatentOptions,
        dtype: DType,
        *,
        scale: float,
        interleaved: bool,
        bias: bool = False,
    ) -> None:
        if o.query_rank:
            self.q_a_proj = Linear(hidden_size, o.query_rank, dtype, bias=bias)
            self.q_a_layernorm = RMSNorm(o.query_rank, _EPS, dtype)
            self.q_b_proj = Linear(o.query_rank, heads * o.key, dtype)
        else:
            self.q_proj = Linear(hidden_size, heads * o.key, dtype)
        self.kv_a_proj_with_mqa = Linear(hidden_size, o.slot, dtype, bias=bias)
        self.kv_a_layernorm = RMSNorm(o.rank, _EPS, dtype)
        self.kv_b_proj = Linear(o.rank, heads * (o.plain + o.value), dtype)
        self.o_proj = Linear(heads * o.value, hidden_size, dtype, bias=bias)
        self.options, self.heads, self.scale, self.interleaved = o, heads, scale, interleaved

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See SelfAttention."""
        o, emit = self.options, x.trace.emit
        whole = self.kv_a_proj_with_mqa(x)
        latent = self.kv_a_layernorm(whole.part(0, o.rank))
        key = emit("join_heads", latent, self._turned(whole.part(o.rank, o.rotated), step), heads=1)
        index = (step.positions, step.seq_ids, step.page_indptr, step.page_table)
        cache = emit("kv_append", key, cache, *index, head_dim=o.slot)
        attended = emit(
            "attention",
            *(self._queries(x, step), cache, step.positions, step.page_indptr, step.page_table),
            *(step.tile_start, step.tile_size, step.tile_seq),
            head_dim=o.slot,
            value_dim=o.rank,
            scale=self.scale,
            window=-1,
            sinks=0,
        )
        weight = self.kv_b_proj.weight.read(x.trace)
        stride = o.plain + o.value
        rows = {"start": o.plain, "size": o.value, "stride": stride}
        return self.o_proj(emit("head_matmul", attended, weight, **rows)), cache

    def _queries(self, x: Tensor, step: Step) -> Tensor:
        """[n, heads * slot]: of each head, its plain part among the latents, its rotated part."""
        o, emit = self.options, x.trace.emit
        q = self._projected(x)
        plain = emit("slice_groups", q, start=0, size=o.plain, stride=o.key)
        rotated = emit("slice_groups", q, start=o.plain, size=o.rotated, stride=o.key)
        weight = self.kv_b_proj.weight.read(x.trace)
        rows = {"start": 0, "size": o.plain, "stride": o.plain + o.value}
        absorbed = emit("head_matmul_up", plain, weight, **rows)
        return emit("join_heads", absorbed, self._turned(rotated, step), heads=self.heads)

    def _projected(self, x: Tensor) -> Tensor:
        if not self.options.query_rank:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _turned(self, x: Tensor, step: Step) -> Tensor:
        pairs = {"interleaved": True} if self.interleaved else {}
        return x.trace.emit("rope", x, *step.rope(0), head_dim=self.options.rotated, **pairs)
