"""Images from a data: URL to an answer: alone, beside others, reused, and of every wrong form."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import compiled
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import tiny
import tiny_vision as vision
from running import start
from test_vision import weights

import sterna
from sterna.base.artifact import Vision
from sterna.base.errors import ArtifactError, RequestError, UsageError
from sterna.base.target import parse_target
from sterna.engine import image_reader
from sterna.engine.image_reader import ImageReader
from sterna.engine.options import EngineOptions
from sterna.web_folder import compile_folder

# As LLaVA's own: content is a list of parts, images come first.
TEMPLATE = """
{%- for message in messages -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}<image> {% endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{ part['text'] + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}w9{%- endif -%}
"""
OWN = Vision(image_token=vision.IMAGE_TOKEN, image_size=vision.SIZE, patch_size=vision.PATCH)


def write(folder: Path) -> None:
    """A checkpoint as it is published; a text is words of `w<id>`."""
    tiny.write_folder(folder, vision.LLAVA, weights("llava"))
    vocabulary = {f"w{i}": i for i in range(vision.IMAGE_TOKEN)}
    added = {"id": vision.IMAGE_TOKEN, "content": "<image>", "special": True}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{**usual, **added}],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "preprocessor_config.json").write_text(json.dumps(vision.PREPROCESSOR))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> compiled.Compiled:
    root = tmp_path_factory.mktemp("llava")
    write(root / "source")
    sizes = {"context_window_size": 96, "prefill_chunk_size": 32, "max_batch_size": 4}
    return compiled.build(root / "source", root / "converted", "q0f32", **sizes)


@pytest.fixture(scope="module")
def engine(made: compiled.Compiled) -> Iterator[sterna.Engine]:
    with sterna.Engine(made.folder, made.library, options=EngineOptions(threads=1)) as found:
        yield found


def png(image: Image.Image | int = 0, form: str = "PNG") -> bytes:
    """An image's file; a number draws one of noise."""
    if isinstance(image, int):
        drawn = np.random.default_rng(image).integers(0, 256, (30, 44, 3), np.uint8)
        image = Image.fromarray(drawn)
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def part(data: bytes | str | int) -> dict[str, Any]:
    data = png(data) if isinstance(data, int) else data
    shown = data if isinstance(data, str) else url(data)
    return {"type": "image_url", "image_url": {"url": shown}}


def user(*content: bytes | str | int) -> list[dict[str, Any]]:
    """One message: texts as they are, images as numbers or files."""
    parts = [{"type": "text", "text": c} if isinstance(c, str) else part(c) for c in content]
    return [{"role": "user", "content": parts}]


def ask(engine: sterna.Engine, messages: list[dict[str, Any]]) -> Any:
    return engine.chat.completions.create(
        messages=messages, max_tokens=6, temperature=0, ignore_eos=True, logprobs=True
    )


def told(answer: Any) -> list[tuple[str, float]]:
    return [(t.token, t.logprob) for t in answer.choices[0].logprobs.content]


def test_an_answer_is_that_of_the_steps_by_hand(
    engine: sterna.Engine, made: compiled.Compiled
) -> None:
    answer = ask(engine, user(5, "w7 w8"))
    executable = made.load()
    reader = ImageReader.load(made.folder, OWN)
    rows = executable.see(reader.read(url(png(5)), "x").values)
    prompt = [*(vision.IMAGE_TOKEN,) * vision.TOKENS, 7, 8, 9]
    size = executable.manifest.kv_cache.page_size
    batch = compiled.step_input([compiled.Part(prompt, 0, list(range(4)))], size)
    given = np.zeros((len(prompt), rows.shape[1]), np.float32)
    given[: vision.TOKENS] = rows
    where = (np.arange(len(prompt)) < vision.TOKENS).astype(np.int32)
    step = compiled.StepInput(
        **{f: getattr(batch, f) for f in ("tokens", "positions", "seq_indptr", "page_indptr",
                                          "page_table", "logit_rows")},
        given=given,
        is_given=where,
    )  # fmt: skip
    first = int(executable.step(step)[0].argmax())
    executable.close()
    assert told(answer)[0][0] == engine.tokenizer.decode([first])
    assert answer.usage.prompt_tokens == len(prompt)


def test_pages_are_shared_by_equal_images_only(engine: sterna.Engine) -> None:
    first = ask(engine, user(11, "w7 w8 w10"))
    again = ask(engine, user(11, "w7 w8 w10"))
    other = ask(engine, user(12, "w7 w8 w10"))
    assert told(again) == told(first) != told(other)
    assert again.usage.prompt_tokens_details.cached_tokens >= vision.TOKENS
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    looked = engine.explain_prefix(messages=user(12, "w7 w8 w10"))
    assert all(token >= 0 for token in (*looked.prompt, *looked.known))


def test_two_images_and_their_order(engine: sterna.Engine) -> None:
    one, other = (ask(engine, user(a, b, "w5")) for a, b in ((1, 2), (2, 1)))
    assert one.usage.prompt_tokens == 2 * vision.TOKENS + 2
    assert told(one) != told(other)


def test_several_together_are_each_alone(engine: sterna.Engine) -> None:
    asked = [user(21, "w7"), user("w7 w8"), user(22, 23, "w4"), user(21, "w6"), user(24, "w7")]
    alone = [told(ask(engine, messages)) for messages in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda m: told(ask(engine, m)), asked))
    assert together == alone


def test_guesses_chunks_and_no_cache_change_nothing(
    engine: sterna.Engine, made: compiled.Compiled
) -> None:
    asked = [user(41, 42, "w7 w8 w7 w8 w7"), user(41, "w6 w6 w6")]
    options = EngineOptions(
        threads=1, speculative="ngram", prefill_chunk_size=7, prefix_cache=False
    )
    with sterna.Engine(made.folder, made.library, options=options) as other:
        for messages in asked:
            assert told(ask(other, messages)) == told(ask(engine, messages))


def test_pages_on_the_disk_are_found_by_content(made: compiled.Compiled, tmp_path: Path) -> None:
    options = EngineOptions(threads=1, prefix_cache_dir=tmp_path)
    with sterna.Engine(made.folder, made.library, options=options) as first:
        wanted = told(ask(first, user(51, "w7")))
    with sterna.Engine(made.folder, made.library, options=options) as second:
        other, again = ask(second, user(52, "w7")), ask(second, user(51, "w7"))
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens >= 16
    assert told(again) == wanted


def test_text_alone(engine: sterna.Engine) -> None:
    plain = [{"role": "user", "content": "w7 w8"}]
    assert told(ask(engine, plain)) == told(ask(engine, user("w7 w8")))
    assert engine.chat_ids(plain) == [7, 8, 9]
    assert len(engine.chat_ids(user(3, "w7"))) == vision.TOKENS + 2


def test_a_placeholder_in_a_users_words_is_text(engine: sterna.Engine) -> None:
    assert vision.IMAGE_TOKEN not in engine.chat_ids(user("w7 <image> w8"))
    with pytest.raises(RequestError, match="which is the place of an image"):
        engine.completions.create(prompt="w7 <image> w8")
    with pytest.raises(RequestError, match="which is the place of an image"):
        engine.completions.create(prompt=[7, vision.IMAGE_TOKEN])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 16), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BAD: Mapping[str, tuple[str, str]] = {
    "not an image": (url(b"hello, world"), "no image that can be read; possible are PNG"),
    "empty": (url(b""), "no image that can be read"),
    "truncated": (url(png(1)[:700]), "damaged image"),
    "another format": (url(png(1, "BMP")), "no image that can be read"),
    "many pixels": (url(bomb(20000, 20000)), "possible are up to 33554432 pixels"),
    "very many pixels": (url(bomb(2**31 - 1, 2**31 - 1)), "possible are up to 33554432 pixels"),
    "a line": (url(bomb(4000, 1)), "one side may be 100 times the other"),
    "an address": ("https://example.com/a.png", "images are not fetched"),
    "a file": ("file:///etc/passwd", "images are not fetched"),
    "a path": ("/etc/passwd", "images are not fetched"),
    "not base64": ("data:image/png;base64,###", "is not base64"),
    "no base64": ("data:image/png,abc", "no data:image"),
    "no comma": ("data:image/png;base64", "no data:image"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image(engine: sterna.Engine, name: str) -> None:
    shown, why = BAD[name]
    with pytest.raises(RequestError, match=why) as found:
        ask(engine, [{"role": "user", "content": [part(shown)]}])
    assert found.value.param == "messages[0].content[0].image_url.url"
    assert len(str(found.value)) < 300


def test_too_many_bytes_and_too_many_images(
    engine: sterna.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="17 images, possible are up to 16"):
        ask(engine, user(*[1] * 17, "w7"))
    monkeypatch.setattr(image_reader, "MAX_BYTES", 1 << 10)
    with pytest.raises(RequestError, match="send it smaller"):
        ask(engine, user(1, "w7"))


def test_images_that_do_not_fit_the_window(engine: sterna.Engine) -> None:
    with pytest.raises(RequestError, match="context window is 96 tokens"):
        ask(engine, user(*range(6), "w7"))


def test_damage_everywhere(engine: sterna.Engine) -> None:
    """Any byte of a file may be wrong: an image or a sentence, never more."""
    whole = png(Image.fromarray(np.zeros((24, 24, 3), np.uint8)), "JPEG")
    for at in range(0, len(whole), 29):
        data = bytearray(whole)
        data[at] ^= 0xFF
        with suppress(RequestError):
            assert image_reader.decode_image(bytes(data), "x").mode == "RGB"


def test_images_for_a_model_of_text() -> None:
    with sterna.Engine(device="null") as engine, pytest.raises(RequestError) as found:
        ask(engine, user(1, "hello"))
    assert "reads text alone" in str(found.value)


def test_without_the_library(engine: sterna.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'sterna\[vision\]'"):
        ask(engine, user(1, "w7"))


def test_over_http(made: compiled.Compiled) -> None:
    own = sterna.AsyncEngine(made.folder, made.library, options=EngineOptions(threads=1))
    server = start(own)
    try:
        fine = server.chat(messages=user(31, "w7 w8"), max_tokens=3)
        assert fine.status == 200
        assert fine.json["usage"]["prompt_tokens"] == vision.TOKENS + 3
        for messages, why in (
            (user("w7", b"no image"), "no image that can be read"),
            ([{"role": "system", "content": [part(1)]}], "content"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
        ):
            refused = server.chat(messages=messages)
            assert refused.status == 400
            assert why in json.dumps(refused.error)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"do_resize": False}, "do_resize = False"),
        ({"do_pad": True}, "do_pad = True"),
        ({"resample": 2}, "resample = 2"),
        ({"crop_size": 336}, "cuts images to 336"),
        ({"size": {"longest_edge": 900}}, "supported: a shortest_edge"),
        ({"size": {"shortest_edge": 4}}, "supported: a shortest_edge"),
        ({"image_mean": [1, 2]}, "three numbers"),
        ({"image_std": [0.0, 1.0, 1.0]}, "a positive number"),
        ({"rescale_factor": "x"}, "a positive number"),
    ],
)
def test_images_prepared_otherwise(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**vision.PREPROCESSOR, **change})
    )
    with pytest.raises(ArtifactError, match=why):
        ImageReader.load(tmp_path, OWN)


def test_a_folder_that_does_not_say_how(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no preprocessor_config.json"):
        ImageReader.load(tmp_path, OWN)
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": vision.PREPROCESSOR})
    )
    assert ImageReader.load(tmp_path, OWN).shorter == vision.SIZE


def test_the_folder_for_browsers_is_refused(made: compiled.Compiled, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the package for browsers"):
        compile_folder(made.folder, parse_target("webgpu"), tmp_path / "web")


def test_images_are_prepared_as_transformers_does(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(vision.PREPROCESSOR))
    reader = ImageReader.load(tmp_path, OWN)
    for drawn, wanted in zip(vision.drawn(), vision.prepared(), strict=True):
        found = reader.patches(Image.fromarray(drawn))
        assert np.abs(found - vision.patches(wanted)).max() < 1e-5


def test_an_image_is_turned_as_its_camera_says() -> None:
    drawn = Image.fromarray(vision.drawn()[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    out = io.BytesIO()
    drawn.save(out, "PNG", exif=exif)
    turned = image_reader.decode_image(out.getvalue(), "x")
    assert np.array_equal(np.asarray(turned), np.rot90(vision.drawn()[0], -1))
