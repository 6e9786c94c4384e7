"""Models in a browser give the tokens of the CPU target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled import Compiled, Part, step_input
from serving import FileServer
from web_models import WebModel, web_model

TIE = 1e-3  # logits that lie as close may be ranked either way: the sums have another order
PROMPT = [5 + 7 * i % 61 for i in range(45)]
COUNT = 24

ANSWER = """async ([url, prompt, count]) => {
  const engine = await sterna.CreateEngine(url, { loadText: loadNumbers(1 << 20) });
  const { choices, usage } = await engine.completions.create({
    prompt, max_tokens: count, temperature: 0, logprobs: 2, ignore_eos: true,
  });
  await engine.unload();
  return { tokens: choices[0].logprobs.tokens.map(Number), usage };
}"""


def check_tokens(found: list[int], model: WebModel, prompt: list[int]) -> None:
    """Each token is the CPU's choice after those before it, or as good as that."""
    executable = Compiled(model.converted, model.library).load()
    pages = list(range(32))
    sequence = [*prompt, *found]
    size = executable.manifest.kv_cache.page_size
    done = 0
    for end in range(len(prompt), len(sequence)):
        part = Part(sequence[done:end], done, pages)
        (logits,) = executable.step(step_input([part], size))
        best, chosen = int(logits.argmax()), sequence[end]
        assert chosen == best or logits[best] - logits[chosen] < TIE, (end, chosen, best)
        done = end
    executable.close()


def test_the_demo_model(page: Any, site: FileServer, tern: WebModel) -> None:
    site.folders["tern"] = tern.folder
    told = page.evaluate(ANSWER, [f"{site.url}/tern", PROMPT, COUNT])
    assert len(told["tokens"]) == COUNT
    check_tokens(told["tokens"], tern, PROMPT)
    assert told["usage"]["prompt_tokens"] == len(PROMPT)
    assert told["usage"]["completion_tokens"] == COUNT
    assert told["usage"]["extra"]["decode_tokens_per_s"] > 0


@pytest.mark.slow
def test_stories(
    page: Any, site: FileServer, shared: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = shared / "models" / "stories260K-hf"
    if not source.is_dir():
        pytest.skip("needs stories260K-hf among the real inputs")
    model = web_model(source, tmp_path_factory.mktemp("stories"), "q4f16_1")
    site.folders["stories"] = model.folder
    prompt = [1, *np.arange(300, 320).tolist()]
    told = page.evaluate(ANSWER, [f"{site.url}/stories", prompt, COUNT])
    check_tokens(told["tokens"], model, prompt)
