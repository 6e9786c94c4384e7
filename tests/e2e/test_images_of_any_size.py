"""Images of any size from a data: URL to an answer: Qwen2.5-VL's way, alone and beside others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import compiled
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import tiny
import tiny_grid_vision as vision
from running import start
from test_grid_vision import weights
from test_images import BAD, ask, bomb, part, png, told, url, user

import sterna
from sterna.base.artifact import Vision
from sterna.base.errors import ArtifactError, RequestError
from sterna.cli.main import main
from sterna.engine.grid_reader import GridReader
from sterna.engine.options import EngineOptions

TEMPLATE = """
{%- for message in messages -%}
{%- if message['content'] is string -%}{{ message['content'] + ' ' }}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<vision> <image> </vision> {% elif 'text' in part -%}
{{ part['text'] + ' ' }}{%- endif -%}{%- endfor -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}w9{%- endif -%}
"""
MOST = 48  # squares: half of the context
OWN = Vision(
    image_token=vision.IMAGE_TOKEN,
    image_size=0,
    patch_size=vision.PATCH,
    lead=0,
    dropped=0,
    merge=vision.MERGE,
    most=MOST,
    frames=vision.FRAMES,
    window=2,
    axes=3,
)
SIDE = vision.PATCH * vision.MERGE


def write(folder: Path) -> None:
    """A checkpoint as it is published; a text is words of `w<id>`."""
    tiny.write_folder(folder, vision.QWEN25VL, weights("qwen2_5_vl"))
    special = {"<vision>": 61, "</vision>": 62, "<image>": vision.IMAGE_TOKEN}
    vocabulary = {f"w{i}": i for i in range(61)}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {**usual, "id": i, "content": text, "special": True} for text, i in special.items()
        ],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "preprocessor_config.json").write_text(json.dumps(vision.PREPROCESSOR))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> compiled.Compiled:
    root = tmp_path_factory.mktemp("qwen2_5_vl")
    write(root / "source")
    sizes = {"context_window_size": 2 * MOST, "prefill_chunk_size": 32, "max_batch_size": 4}
    return compiled.build(root / "source", root / "converted", "q0f32", **sizes)


@pytest.fixture(scope="module")
def engine(made: compiled.Compiled) -> Iterator[sterna.Engine]:
    with sterna.Engine(made.folder, made.library, options=EngineOptions(threads=1)) as found:
        yield found


def of_size(width: int, height: int, seed: int = 0) -> bytes:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return png(Image.fromarray(drawn))


WIDE, HIGH = of_size(44, 30), of_size(20, 60)  # 6 x 4 squares, and 2 x 8: half goes to even
LINE = of_size(100, 8)  # 12 x 1: half goes to even
SQUARES = {WIDE: 24, HIGH: 16, LINE: 12}


def test_the_manifest_says_what_the_model_takes(made: compiled.Compiled) -> None:
    executable = made.load()
    assert executable.manifest.vision == OWN
    executable.close()


@pytest.mark.parametrize(("data", "grid"), [(WIDE, (4, 6)), (LINE, (1, 12))])
def test_an_answer_is_that_of_the_steps_by_hand(
    engine: sterna.Engine, made: compiled.Compiled, data: bytes, grid: tuple[int, int]
) -> None:
    answer = ask(engine, user(data, "w7 w8"))
    executable = made.load()
    shown = GridReader.load(made.folder, OWN).read(url(data), "x")
    assert shown.grid == grid
    rows = executable.see(shown.values, shown.grid)
    count = len(rows)
    prompt = [61, *(vision.IMAGE_TOKEN,) * count, 62, 7, 8, 9]
    turned = [[0, 0, 0], *([1, 1 + i // grid[1], 1 + i % grid[1]] for i in range(count))]
    turned += [[1 + max(grid) + i] * 3 for i in range(4)]
    given, where = np.zeros((len(prompt), rows.shape[1]), np.float32), np.zeros(len(prompt))
    given[1 : count + 1], where[1 : count + 1] = rows, 1
    size = executable.manifest.kv_cache.page_size
    tokens, found, start = prompt, [], len(prompt)
    for _ in range(3):
        at = len(prompt) - len(tokens)
        batch = compiled.step_input([compiled.Part(tokens, at, list(range(4)))], size)
        own = {"rope_positions": np.array(turned[at:], np.int32)}
        own |= {} if at else {"given": given, "is_given": where.astype(np.int32)}
        logits = executable.step(replace(batch, **own))[0]
        token = int(logits.argmax())
        found.append(float(logits[token] - np.log(np.exp(logits).sum())))
        prompt, tokens = [*prompt, token], [token]
        turned.append([turned[-1][0] + 1] * 3)
    executable.close()
    texts = [engine.tokenizer.decode([token]) for token in prompt[start:]]
    assert [token for token, _ in told(answer)[:3]] == texts
    assert [logprob for _, logprob in told(answer)[:3]] == pytest.approx(found, abs=1e-5)
    assert answer.usage.prompt_tokens == start


def test_the_tokens_of_an_image_follow_its_size(engine: sterna.Engine) -> None:
    for data, squares in SQUARES.items():
        assert len(engine.chat_ids(user(data, "w7"))) == squares + 4
    small, large = (engine.chat_ids(user(of_size(*s), "w7")) for s in ((9, 9), (300, 200)))
    assert 12 <= len(small) - 4 <= len(large) - 4 <= 30  # of the processor's own bounds


def test_pages_are_shared_by_equal_images_only(engine: sterna.Engine) -> None:
    first = ask(engine, user(WIDE, "w7 w8 w10"))
    again = ask(engine, user(WIDE, "w7 w8 w10"))
    other = ask(engine, user(of_size(44, 30, 1), "w7 w8 w10"))
    assert told(again) == told(first) != told(other)
    assert again.usage.prompt_tokens_details.cached_tokens >= 24
    assert other.usage.prompt_tokens_details.cached_tokens <= 1  # what opens an image
    looked = engine.explain_prefix(messages=user(WIDE, "w7 w8 w10"))
    assert all(token >= 0 for token in (*looked.prompt, *looked.known))


def test_one_colour_in_two_forms_is_two_images(engine: sterna.Engine) -> None:
    """As many patches of the same numbers, that stand otherwise."""
    wide, high = (png(Image.new("RGB", size, (9, 99, 199))) for size in ((48, 32), (32, 48)))
    first, second = (ask(engine, user(data, "w7 w8")) for data in (wide, high))
    assert second.usage.prompt_tokens_details.cached_tokens <= 1
    assert told(first) != told(second)


def test_several_together_are_each_alone(engine: sterna.Engine) -> None:
    few = of_size(30, 30, 2)
    asked = [user(WIDE, "w7"), user("w7 w8"), user(few, HIGH, "w4"), user(HIGH, "w6"), user(few)]
    alone = [told(ask(engine, messages)) for messages in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda m: told(ask(engine, m)), asked))
    assert together == alone


def test_guesses_chunks_and_no_cache_change_nothing(
    engine: sterna.Engine, made: compiled.Compiled
) -> None:
    asked = [user(WIDE, HIGH, "w7 w8 w7 w8 w7"), user(HIGH, "w6 w6 w6")]
    options = EngineOptions(
        threads=1, speculative="ngram", prefill_chunk_size=7, prefix_cache=False
    )
    with sterna.Engine(made.folder, made.library, options=options) as other:
        for messages in asked:
            assert told(ask(other, messages)) == told(ask(engine, messages))


def test_text_alone(engine: sterna.Engine) -> None:
    plain = [{"role": "user", "content": "w7 w8"}]
    assert told(ask(engine, plain)) == told(ask(engine, user("w7 w8")))
    assert engine.chat_ids(plain) == [7, 8, 9]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image(engine: sterna.Engine, name: str) -> None:
    shown, why = BAD[name]
    with pytest.raises(RequestError, match=why) as found:
        ask(engine, [{"role": "user", "content": [part(shown)]}])
    assert found.value.param == "messages[0].content[0].image_url.url"
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("kind", ["video", "video_url"])
def test_videos_are_refused_by_name(engine: sterna.Engine, kind: str) -> None:
    with pytest.raises(RequestError, match=kind):
        ask(engine, [{"role": "user", "content": [{"type": kind, kind: {"url": "x"}}]}])


def test_images_that_do_not_fit(engine: sterna.Engine) -> None:
    with pytest.raises(RequestError, match="context window is 96 tokens"):
        ask(engine, user(*(WIDE,) * 4, "w7"))
    with pytest.raises(RequestError, match="does not fit the 48 tokens of an image"):
        ask(engine, user(png(Image.new("RGB", (2400, 25))), "w7"))
    with pytest.raises(RequestError, match="possible are up to 33554432 pixels"):
        ask(engine, user(bomb(20000, 20000), "w7"))


def test_over_http(made: compiled.Compiled) -> None:
    own = sterna.AsyncEngine(made.folder, made.library, options=EngineOptions(threads=1))
    server = start(own)
    try:
        fine = server.chat(messages=user(WIDE, "w7 w8"), max_tokens=3)
        assert fine.status == 200
        assert fine.json["usage"]["prompt_tokens"] == 29
        refused = server.chat(messages=user("w7", b"no image"))
        assert refused.status == 400
        assert "no image that can be read" in json.dumps(refused.error)
    finally:
        server.stop()


def test_images_are_prepared_as_transformers_does(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(vision.PREPROCESSOR))
    reader = GridReader.load(tmp_path, OWN)
    for drawn, (grid, patches) in zip(vision.drawn(), vision.prepared(), strict=True):
        found = reader.patches(Image.fromarray(drawn))
        assert found.grid is not None
        assert tuple(side * vision.MERGE for side in found.grid) == grid
        assert np.abs(found.values - patches).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        ({}, 768, 1920),
        ({"max_pixels": 10**8}, 768, MOST * SIDE**2),
        ({"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 900,
          "longest_edge": 1800}}, 900, 1800),
        ({"min_pixels": None, "size": {"shortest_edge": 900}}, 900, 1920),
    ],
)  # fmt: skip
def test_bounds_of_pixels(change: dict[str, Any], least: int, most: int, tmp_path: Path) -> None:
    config = {**vision.PREPROCESSOR, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    reader = GridReader.load(tmp_path, OWN)
    assert (reader.least, reader.most) == (least, most)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"do_resize": False}, "do_resize = False"),
        ({"resample": 2}, "resample = 2"),
        ({"patch_size": 14}, "patch_size = 14, the model's own is 4"),
        ({"merge_size": 1}, "merge_size = 1"),
        ({"temporal_patch_size": 1}, "temporal_patch_size = 1"),
        ({"min_pixels": 10**6, "max_pixels": 10**7}, "the library is made for up to 3072"),
        ({"max_pixels": 10}, "wants images of 768 to 10 pixels"),
        ({"max_pixels": "x"}, "a number of pixels"),
        ({"max_pixels": None, "size": {"longest_edge": -1}}, "a number of pixels"),
        ({"image_mean": [1, 2]}, "three numbers"),
    ],
)
def test_images_prepared_otherwise(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**vision.PREPROCESSOR, **change})
    )
    with pytest.raises(ArtifactError, match=why):
        GridReader.load(tmp_path, OWN)


def test_in_the_terminal(
    made: compiled.Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wide.png").write_bytes(WIDE)
    args = ["chat", str(made.folder), "--model-lib", str(made.library), "--prompt", "w7 w8"]
    limits = ["--max-tokens", "4", "--temperature", "0"]
    assert main([*args, *limits, "--image", str(tmp_path / "wide.png")]) == 0
    assert capsys.readouterr().out.strip()
