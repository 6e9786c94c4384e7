"""Say what the demo model answers: batches of prompts in, answers out.

Prompts of one length run together, so that nothing is padded.
Tokens are drawn as Hugging Face draws them (temperature, then top-p).
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from examples.demo_model import corpus
from examples.demo_model.model import Llama
from tokenizers import Tokenizer
from torch import Tensor


@torch.no_grad()
def say(
    model: Llama,
    text: Tokenizer,
    prompts: Sequence[str],
    limit: int,
    temperature: float = 0.0,
    top_p: float = 0.9,
) -> list[str]:
    """The answer to each prompt, of at most `limit` tokens; temperature 0 is greedy."""
    end = text.token_to_id(corpus.END)
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        ids = text.encode(prompt, add_special_tokens=False).ids
        by_length[len(ids)].append((place, ids))
    found = [""] * len(prompts)
    for length, group in by_length.items():
        ids = new = torch.tensor([ids for _, ids in group])
        caches: list[list[Tensor]] = [[] for _ in model.model.layers]
        for _ in range(limit):
            new = _next(model(new, caches=caches)[:, -1], temperature, top_p)
            ids = torch.cat([ids, new], dim=1)
            if (ids[:, length:] == end).any(dim=1).all():
                break
        for (place, _), row in zip(group, ids[:, length:].tolist(), strict=True):
            said = row[: row.index(end)] if end in row else row
            found[place] = text.decode(said)
    return found


def _next(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    sorted_, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True)
    before = sorted_.cumsum(dim=-1) - sorted_
    kept = sorted_.masked_fill(before >= top_p, 0.0)
    return order.gather(-1, torch.multinomial(kept, 1))
