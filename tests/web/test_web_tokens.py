"""Models in a browser give the tokens of the CPU target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import firefox
import numpy as np
import pytest
from compiled import Compiled, Part, step_input
from serving import FileServer
from web_models import WebModel, changed, only, web_model

from sterna.base import web

TIE = 1e-3  # logits that lie as close may be ranked either way: the sums have another order
PROMPT = [5 + 7 * i % 61 for i in range(45)]
COUNT = 24

ANSWER = "(told) => answer(...told)"


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


READ = """async (task) => {
  const sizes = [];
  const map = GPUBuffer.prototype.mapAsync;
  GPUBuffer.prototype.mapAsync = function (mode, offset = 0, size = this.size - offset) {
    sizes.push(size);
    return map.call(this, mode, offset, size);
  };
  try {
    await task();
  } finally {
    GPUBuffer.prototype.mapAsync = map;
  }
  return sizes;
}"""


def test_a_token_is_four_bytes(page: Any, site: FileServer, tern: WebModel) -> None:
    """What the browser reads of the device; who asks for probabilities has it read the logits."""
    site.folders["tern"] = tern.folder
    told = page.evaluate(
        f"""async ([url, prompt]) => {{
          performance.now = () => 0; // a device of which nothing takes long
          const engine = await sterna.CreateEngine(url, {{ loadText: loadNumbers(1 << 20) }});
          const ask = (more) => ({READ})(() => engine.completions.create({{
            prompt, max_tokens: 3, ignore_eos: true, ...more,
          }}));
          const read = [await ask({{ temperature: 0, presence_penalty: 1 }}),
                        await ask({{ temperature: 1, seed: 1 }}),
                        await ask({{ temperature: 1, seed: 1, logprobs: 1 }})];
          await engine.unload();
          return read;
        }}""",
        [f"{site.url}/tern", PROMPT],
    )
    greedy, drawn, probable = told
    assert greedy == drawn == [4, 4, 4]
    assert sum(size > 4 for size in probable) == 3


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


def test_each_program_says_what_its_cache_takes(tern_f16: WebModel) -> None:
    """In f16 where the device has it, else in f32, which is twice as much."""
    index = web.decode((tern_f16.folder / web.INDEX).read_bytes())
    caches = {program.target: program.memory.kv_cache for program in index.programs}
    assert caches["webgpu"] == caches["webgpu:barrier-free"]
    assert 1.99 < caches["webgpu"] / caches["webgpu:f16"] <= 2


@pytest.mark.slow
def test_the_program_in_f16_in_firefox(
    site: FileServer, tern_f16: WebModel, tmp_path: Path
) -> None:
    site.forget()
    # lavapipe only imitates a GPU, so where there is a choice it takes the program without barriers
    site.folders["f16"] = changed(tern_f16, tmp_path / "f16", only("webgpu:f16"))
    assert b"enable f16;" in (tern_f16.folder / "webgpu-f16.sterna").read_bytes()
    profile = tmp_path / "profile"
    profile.mkdir()
    asked = quote(json.dumps([f"{site.url}/f16", PROMPT, COUNT]))
    with firefox.opened(f"{site.url}/page/report.html#{asked}", profile):
        told = site.told.get(timeout=90)
    assert told["error"] is None
    assert told["needs"]["program"] == "webgpu:f16"
    assert len(told["tokens"]) == COUNT
    check_tokens(told["tokens"], tern_f16, PROMPT)
