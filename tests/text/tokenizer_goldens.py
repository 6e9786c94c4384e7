"""Which of the stored encodings, llama.cpp's and others', belong to which model's tokenizer."""

import json
from pathlib import Path

GOLDENS = {
    "gpt2-xl": "gpt-2",
    "Meta-Llama-3-8B-Instruct": "llama-bpe",
    "TinyLlama-1.1B-Chat-v1.0": "llama-spm",
    "Phi-3-mini-128k-instruct": "phi-3",
    "Qwen3-30B-A3B": "qwen2",
    "Qwen2.5-0.5B-Instruct": "qwen2",
}
LONG_GOLDENS = {
    "gpt2-xl": "gpt2_encoded_tokens",
    "Meta-Llama-3-8B-Instruct": "llama_3.2_encoded",
    "TinyLlama-1.1B-Chat-v1.0": "llama_encoded",
}


def strings(shared: Path) -> list[str]:
    """The 47 texts of GOLDENS; bytes, for reading as text would turn "\\r\\n" into "\\n"."""
    raw = (shared / "tokenizer-goldens" / "vocab-test.inp").read_bytes().decode()
    return raw.split("\n__ggml_vocab_test__\n")


def expected(shared: Path, name: str) -> list[list[int]]:
    """Ids of `strings` by a model's tokenizer, without start and end."""
    path = shared / "tokenizer-goldens" / f"{GOLDENS[name]}.out"
    return [[int(number) for number in line.split()] for line in path.read_text().split("\n")]


def long_text(shared: Path, name: str) -> tuple[str, list[int]]:
    """A page of text and its ids, with the start token where the tokenizer has one."""
    path = shared / "tokenizer-goldens" / f"{LONG_GOLDENS[name]}.json"
    golden = json.loads(path.read_text(encoding="utf-8"))
    return golden["text"], golden.get("token_ids") or golden["input_ids"]
