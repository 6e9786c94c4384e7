"""Embedding models from a checkpoint's folder to vectors: in this process, and over HTTP."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compiled
import numpy as np
import openai
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import tiny
import tiny_families
from running import null, start, sterna_serve
from test_family_logits import weights

import sterna
from sterna.base.errors import CheckpointError, RequestError, UnsupportedModel
from sterna.checkpoint.pooling import read_pooling
from sterna.engine.options import EngineOptions

PROMPT = list(tiny_families.PROMPT)
CLOSE = 1e-5  # of vectors of length 1
TEXTS = ["w7 w8 w9", "w40", " ".join(f"w{i}" for i in range(3, 50)), "w9 w8 w7"]


def write(folder: Path, variant: str, pooling: str, normalize: bool = True) -> Path:
    """A checkpoint as sentence-transformers publishes it; a text is words of `w<id>`."""
    config = tiny_families.EMBEDDING[variant]
    own = {k: v for k, v in config.items() if not k.startswith("sentence_")}
    tiny.write_folder(folder, own, weights(variant))
    vocabulary = {f"w{i}": i for i in range(64)}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "w1", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "w2", "type_id": 0}}],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {f"w{i}": {"id": f"w{i}", "ids": [i], "tokens": [f"w{i}"]}
                               for i in (1, 2)},
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "",
         "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    config = {"word_embedding_dimension": 48} | {f"pooling_mode_{m}": m == pooling for m in modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def embedder(root: Path, variant: str, pooling: str, **options: Any) -> sterna.Embedder:
    source = write(root / "source", variant, pooling, options.pop("normalize", True))
    sizes = {} if variant == "bert" else {"prefill_chunk_size": 16, "context_window_size": 64}
    made = compiled.build(source, root / "converted", "q0f32", max_batch_size=3, **sizes)
    return sterna.Embedder(made.folder, made.library, options=EngineOptions(**options))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sterna.Embedder]:
    with embedder(tmp_path_factory.mktemp("bert"), "bert", "mean_tokens") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sterna.Embedder]:
    """In steps of 16 tokens."""
    with embedder(tmp_path_factory.mktemp("qwen"), "qwen3-embedding", "lasttoken") as loaded:
        yield loaded


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def test_the_mean_is_that_of_transformers(bert: sterna.Embedder) -> None:
    (found,) = bert.embed([PROMPT]).vectors
    assert np.abs(found - unit(tiny_families.mean_state("bert"))).max() < CLOSE


def test_the_last_state_is_that_of_transformers(qwen: sterna.Embedder) -> None:
    (found,) = qwen.embed([PROMPT]).vectors
    assert np.abs(found - unit(tiny_families.golden("qwen3-embedding")[0][-1])).max() < CLOSE


def test_the_first_state_is_that_of_transformers(tmp_path: Path) -> None:
    with embedder(tmp_path, "bert", "cls_token", normalize=False) as cls:
        (found,) = cls.embed([PROMPT]).vectors
    assert np.abs(found - tiny_families.golden("bert")[0][0]).max() < 1e-4


@pytest.mark.parametrize("name", ["bert", "qwen"])
def test_many_together_are_each_alone(name: str, request: pytest.FixtureRequest) -> None:
    model: sterna.Embedder = request.getfixturevalue(name)
    together = model.embed([*TEXTS, PROMPT, *TEXTS])
    for text, found, tokens in zip(
        [*TEXTS, PROMPT, *TEXTS], together.vectors, together.tokens, strict=True
    ):
        alone = model.embed([text])
        assert alone.vectors[0].tobytes() == found.tobytes()
        assert alone.tokens == (tokens,)
        words = len(text.split()) + 2 if isinstance(text, str) else len(text)
        assert tokens == words


def test_threads_share_a_model(qwen: sterna.Embedder) -> None:
    wanted = [qwen.embed([text]).vectors.tobytes() for text in TEXTS]
    found: list[bytes] = [b""] * len(TEXTS)

    def ask(i: int) -> None:
        for _ in range(5):
            found[i] = qwen.embed([TEXTS[i]]).vectors.tobytes()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_fewer_dimensions_are_the_first(bert: sterna.Embedder) -> None:
    (whole,), (cut,) = bert.embed([PROMPT]).vectors, bert.embed([PROMPT], dimensions=8).vectors
    assert bert.dimensions == len(whole) == 48
    assert np.abs(cut - unit(whole[:8])).max() < CLOSE
    for dimensions in (0, 49, -1):
        with pytest.raises(RequestError, match="1 to 48"):
            bert.embed([PROMPT], dimensions=dimensions)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "text 1 of the input is empty"),
        ([], "text 1 of the input is empty"),
        ([3, 64], "has the id 64, possible are 0 to 63"),
        ([-1], "has the id -1"),
        ([5] * 65, "has 65 tokens, the model takes up to 64"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_is_told(bert: sterna.Embedder, text: Any, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        bert.embed(["w3", text])


def test_a_stopped_request_ends(qwen: sterna.Embedder) -> None:
    stop = threading.Event()
    stop.set()
    before = qwen.metrics()["steps"]
    with pytest.raises(RequestError, match="cancelled"):
        qwen.embed(TEXTS, stop=stop)
    assert qwen.metrics()["steps"] == before


def test_models_of_the_other_kind_are_refused(bert: sterna.Embedder, tmp_path: Path) -> None:
    made = compiled.build(
        write(tmp_path / "source", "bert", "mean_tokens"), tmp_path / "made", "q0f32"
    )
    with pytest.raises(RequestError, match=r"makes embeddings and writes no text.*Embedder"):
        sterna.Engine(made.folder, made.library)
    with pytest.raises(RequestError, match="draft_tokens belongs to models that write text"):
        sterna.Embedder(made.folder, made.library, options=EngineOptions(draft_tokens=3))


def test_over_http_beside_a_model_that_writes(bert: sterna.Embedder) -> None:
    server = start({"null": null(), "bert": bert})
    try:
        asked = {"model": "bert", "input": TEXTS}
        whole = server.ask("/v1/embeddings", asked).json
        wanted = bert.embed(TEXTS)
        assert whole["object"] == "list"
        assert whole["model"] == "bert"
        assert [one["index"] for one in whole["data"]] == list(range(len(TEXTS)))
        for one, vector in zip(whole["data"], wanted.vectors, strict=True):
            assert np.array_equal(np.array(one["embedding"], np.float32), vector)
        assert whole["usage"] == dict.fromkeys(
            ("prompt_tokens", "total_tokens"), sum(wanted.tokens)
        )
        packed = server.ask("/v1/embeddings", asked | {"encoding_format": "base64"}).json
        assert [base64.b64decode(one["embedding"]) for one in packed["data"]] == [
            vector.tobytes() for vector in wanted.vectors
        ]
        ids = server.ask("/v1/embeddings", {"input": PROMPT}).json  # the only one that embeds
        assert len(ids["data"]) == 1
        assert {card["id"] for card in server.ask("/v1/models").json["data"]} == {"null", "bert"}
        assert server.chat().status == 200  # the only one that writes
        refused = server.chat(model="bert")
        assert refused.status == 400
        assert "makes embeddings" in refused.error["message"]
        assert server.ask("/v1/embeddings", {"model": "null", "input": "x"}).status == 400
        assert server.ask("/v1/embeddings", {"model": "other", "input": "x"}).status == 404
        tokens = server.ask("/tokenize", {"model": "bert", "prompt": "w3 w4"}).json
        assert tokens["tokens"] == [1, 3, 4, 2]
        page = server.ask("/metrics").body.decode()
        assert 'vllm:prompt_tokens_total{model_name="bert",engine="0"}' in page
        assert server.ask("/health").status == 200
    finally:
        server.server.stop()
        server.thread.join(20)
        server.app.state.models["null"].close()  # `bert` is others' too


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"input": []}, 400),
        ({"input": ""}, 400),
        ({"input": [3, "w4"]}, 400),
        ({"input": [[3], 4]}, 400),
        ({"input": [[]]}, 400),
        ({"input": 7}, 400),
        ({"input": [-4]}, 400),
        ({"input": None}, 400),
        ({}, 400),
        ({"input": "w3", "dimensions": 900}, 400),
        ({"input": "w3", "encoding_format": "hex"}, 400),
        ({"input": "w3 " * 100}, 400),
        ({"input": "w3", "some_field": 1}, 400),
    ],
)
def test_wrong_requests_are_one_sentence(
    bert: sterna.Embedder, wrong: dict[str, Any], status: int
) -> None:
    server = start({"bert": bert})
    try:
        answer = server.ask("/v1/embeddings", wrong)
        assert answer.status == status
        assert "\n" not in answer.error["message"]
    finally:
        server.server.stop()
        server.thread.join(20)


def test_the_openai_client_over_a_process_of_its_own(tmp_path: Path, bert: sterna.Embedder) -> None:
    source = write(tmp_path / "tiny-bert", "bert", "mean_tokens")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(sterna.__file__).parents[1]),
        "STERNA_CACHE": str(tmp_path / "cache"),
    }
    process, url = sterna_serve(environment, f"bert={source}", "--quantization", "q0f32")
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            found = client.embeddings.create(model="bert", input=TEXTS)
        for one, vector in zip(found.data, bert.embed(TEXTS).vectors, strict=True):
            assert np.array_equal(np.array(one.embedding, np.float32), vector)
    finally:
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        process.stderr.close()
    told = subprocess.run(
        [sys.executable, "-m", "sterna", "generate", str(source), "--quantization", "q0f32",
         "--prompt", "w3"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode != 0
    assert "makes embeddings and writes no text" in told.stderr
    assert "Traceback" not in told.stderr


def test_what_pooling_says_is_checked(tmp_path: Path) -> None:
    folder = write(tmp_path / "good", "bert", "mean_tokens")
    assert read_pooling(folder) == {"sentence_pooling": "mean", "sentence_normalize": True}
    assert read_pooling(tmp_path) == {}

    def changed(name: str, **files: Any) -> Path:
        other = tmp_path / name
        shutil.copytree(folder, other)
        for file, content in files.items():
            path = other / {"modules": "modules.json", "pooling": "1_Pooling/config.json"}[file]
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return other

    kind = "sentence_transformers.models."
    with pytest.raises(UnsupportedModel, match="'Dense'"):
        read_pooling(changed("dense", modules=[{"type": f"{kind}Dense", "path": "2_Dense"}]))
    with pytest.raises(UnsupportedModel, match="no Pooling"):
        read_pooling(changed("none", modules=[]))
    with pytest.raises(CheckpointError, match="names no folder beside it"):
        read_pooling(changed("away", modules=[{"type": f"{kind}Pooling", "path": "../x"}]))
    with pytest.raises(CheckpointError):
        read_pooling(changed("list", modules={"a": 1}))
    with pytest.raises(CheckpointError):
        read_pooling(changed("cut", modules="[{"))
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens"):
        read_pooling(changed("max", pooling={"pooling_mode_max_tokens": True}))
    modes = ("pooling_mode_cls_token", "pooling_mode_mean_tokens")
    with pytest.raises(UnsupportedModel, match="and"):
        read_pooling(changed("two", pooling=dict.fromkeys(modes, True)))
    newer = changed("newer", pooling={"pooling_mode": "lasttoken"})
    assert read_pooling(newer)["sentence_pooling"] == "last"
