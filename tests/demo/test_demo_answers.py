"""The committed weights answer right: by numpy alone, and as transformers reads them."""

import json
import struct

import numpy as np
import pytest
from examples.demo_model import corpus, grammar
from tokenizers import Tokenizer

from sterna.demo import FOLDER

Array = np.ndarray


def weights() -> dict[str, Array]:
    raw = (FOLDER / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__")
    return {
        name: np.frombuffer(body[slice(*record["data_offsets"])], "<f2")
        .reshape(record["shape"])
        .astype(np.float32)
        for name, record in header.items()
    }


class NumpyLlama:
    """As few lines as a Llama takes, to check the folder with neither torch nor Sterna."""

    def __init__(self) -> None:
        self.config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
        self.weights = weights()

    def norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[f"{name}.weight"]

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def heads(self, x: Array, count: int) -> Array:
        return x.reshape(len(x), count, -1).swapaxes(0, 1)

    def rotate(self, x: Array) -> Array:
        half = x.shape[-1] // 2
        angle = np.outer(
            np.arange(x.shape[1]), self.config["rope_theta"] ** (-np.arange(half) / half)
        )
        cos, sin, a, b = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attention(self, x: Array, name: str) -> Array:
        query, kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q = self.rotate(self.heads(self.linear(x, f"{name}.q_proj"), query))
        k = self.rotate(self.heads(self.linear(x, f"{name}.k_proj"), kv)).repeat(query // kv, 0)
        v = self.heads(self.linear(x, f"{name}.v_proj"), kv).repeat(query // kv, 0)
        score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + np.triu(
            np.full((len(x),) * 2, -1e9), 1
        )
        share = np.exp(score - score.max(-1, keepdims=True))
        mixed = share / share.sum(-1, keepdims=True) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{name}.o_proj")

    def mlp(self, x: Array, name: str) -> Array:
        gate = self.linear(x, f"{name}.gate_proj")
        return self.linear(
            gate / (1 + np.exp(-gate)) * self.linear(x, f"{name}.up_proj"), f"{name}.down_proj"
        )

    def logits(self, ids: list[int]) -> Array:
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            x = x + self.mlp(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        return self.norm(x, "model.norm") @ self.weights["model.embed_tokens.weight"].T

    def say(self, text: Tokenizer, question: str, limit: int) -> str:
        ids = text.encode(corpus.prompt(question), add_special_tokens=False).ids
        start, end = len(ids), text.token_to_id(corpus.END)
        while len(ids) < start + limit and ids[-1] != end:
            ids.append(int(self.logits(ids)[-1].argmax()))
        return text.decode(ids[start:])


@pytest.fixture(scope="module")
def model() -> NumpyLlama:
    return NumpyLlama()


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 23 + 45?", "23 + 45 = 68."),
        ("Compute 61 - 17.", "61 - 17 = 44."),
        ("8 plus 7", "8 + 7 = 15."),
        ("Thank you!", "You are welcome!"),
    ],
)
def test_it_answers(model: NumpyLlama, text: Tokenizer, question: str, answer: str) -> None:
    assert model.say(text, question, 20) == answer


def test_it_tells_a_story_on_the_animal(model: NumpyLlama, text: Tokenizer) -> None:
    assert grammar.is_story(model.say(text, "Tell me a story about a fox.", 160), "fox")


@pytest.mark.torch
def test_transformers_reads_the_same_logits(model: NumpyLlama, text: Tokenizer) -> None:
    torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    ids = text.encode(corpus.prompt("Tell me a story about an owl.")).ids
    reference = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(model.logits(ids), expected, atol=1e-3)
