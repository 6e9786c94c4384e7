"""Every kind of Llama model, compiled, gives the logits that transformers gave."""

from __future__ import annotations

import numpy as np
import pytest
from compiled import Variant, all_logits, cut, tiny

from sterna.base.errors import UsageError
from sterna.runtime.executable import Executable

CLOSE = 1e-4  # float32 against float32 of another order; logits are of unit scale
QUICK = ("llama1", "llama3.2-tied", "attention-bias", "mistral-window")
PAGES = range(8)


def marked(names: list[str]) -> list[object]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(list(tiny.VARIANTS)))
def test_prefill_and_decode_give_the_goldens(variant: Variant, name: str) -> None:
    by_context: dict[int, list[tiny.Golden]] = {}
    for golden in tiny.goldens(name):
        by_context.setdefault(context(name, len(golden.prompt)), []).append(golden)
    for window, goldens in by_context.items():
        chunk = min(window, 64)  # so the longest prompt takes two steps
        made = variant(name, context_window_size=window, prefill_chunk_size=chunk)
        model = made.load(num_pages=len(PAGES))
        for golden in goldens:
            check(model, golden, chunk)
            check(model, golden, 1)
        model.close()


def context(name: str, length: int) -> int:
    """transformers takes the frequencies of a context as long as the prompt."""
    if name == "rope-dynamic":
        return max(48, length)
    return len(PAGES) * 16


def check(model: Executable, golden: tiny.Golden, chunk: int) -> None:
    length = len(golden.prompt)
    found = all_logits(model, golden.prompt, cut(length, chunk), PAGES)
    gap = np.abs(found[list(golden.positions)] - golden.logits).max()
    assert gap < CLOSE, f"prompt of {length} in steps of {chunk}"


def test_a_context_past_the_models_positions_is_refused(variant: Variant) -> None:
    with pytest.raises(UsageError, match="129 is longer than the model's 128 positions"):
        variant("llama1", context_window_size=129)
    with pytest.raises(UsageError, match="129 is longer than the model's 128 positions"):
        variant("rope-linear", context_window_size=129)  # 32 positions, stretched by 4


def test_a_window_where_the_model_has_none_is_refused(variant: Variant) -> None:
    with pytest.raises(UsageError, match="llama models have no sliding window"):
        variant("llama1", sliding_window_size=16)
    with pytest.raises(UsageError, match="give sliding_window_size too"):
        variant("mistral", attention_sink_size=4)


def test_a_window_given_to_the_compiler_is_that_of_a_config(variant: Variant) -> None:
    """`mistral-window` is `mistral` but for its window, and so are their weights."""
    golden = tiny.goldens("mistral-window")[-1]
    model = variant("mistral", sliding_window_size=16).load(num_pages=len(PAGES))
    check(model, golden, 64)
    model.close()
    model = variant("mistral-window", sliding_window_size=-1).load(num_pages=len(PAGES))
    check(model, tiny.goldens("mistral")[-1], 64)
    model.close()
