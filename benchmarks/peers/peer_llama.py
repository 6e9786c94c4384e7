"""llama.cpp, through llama-cpp-python and `gguf`; formats are its file types (Q4_0, Q4_K_M, Q8_0).

Q4_0 is made "pure": all matrices have 4 bits, as in Sterna's q4f16_1; by itself llama.cpp would
keep more of the output's, and read more a token. The package has to be built from source with
CMAKE_ARGS=-DGGML_NATIVE=ON, so that it uses what this processor has.
"""

from __future__ import annotations

import ctypes
import json
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from common import check, main

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
_PURE = ("Q4_0",)


def make(source: Path, output: Path, form: str) -> None:
    """Copy the weights into a GGUF file, and let llama.cpp quantize that."""
    whole = source.with_suffix(".bf16.gguf")
    if not whole.exists():
        _write(source, whole)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    params.pure = form in _PURE
    output.parent.mkdir(parents=True, exist_ok=True)
    code = llama_cpp.llama_model_quantize(
        str(whole).encode(), str(output).encode(), ctypes.byref(params)
    )
    check(code == 0, f"llama_model_quantize ended with {code}")


def _write(source: Path, output: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    arch = _ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(output, gguf.MODEL_ARCH_NAMES[arch])
    _write_config(writer, config)
    with open(source / "model.safetensors", "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    data = np.memmap(source / "model.safetensors", np.uint8, "r", offset=8 + size)
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        title = names.get_name(name, try_suffixes=(".weight", ".bias"))
        raw = data[begin:end]
        if len(tensor["shape"]) == 1:  # vectors stay in f32, as llama.cpp wants them
            wide = raw.view(np.uint16).astype(np.uint32) << 16
            writer.add_tensor(title, wide.view(np.float32))
        else:
            shape = (*tensor["shape"][:-1], 2 * tensor["shape"][-1])
            writer.add_tensor(title, raw.reshape(shape), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim", config["hidden_size"] // heads))
    writer.add_vocab_size(config["vocab_size"])
    _write_vocabulary(writer, config["vocab_size"])


def _write_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Bytes, and words that nobody writes: who takes prompts as text has a token for a letter."""
    control = ["<unk>", "<s>", "</s>"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"[{i}]" for i in range(size - len(control) - len(letters))]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*control, *letters, *words])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*types, *[kinds.NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)


class Llama:
    def __init__(self, path: Path, threads: int, longest: int) -> None:
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        check(bool(self._model), f"{path} cannot be loaded")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = longest
        params.n_batch = longest
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        check(bool(self._context), "there is no context")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        begin = time.perf_counter()
        token = self._step(prompt)
        first = time.perf_counter()
        for _ in range(count - 1):
            token = self._step([token])
        return first - begin, time.perf_counter() - first

    def _step(self, tokens: list[int]) -> int:
        given = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(given, len(tokens))
        code = llama_cpp.llama_decode(self._context, batch)
        check(code == 0, f"llama_decode ended with {code}")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._size,)).argmax())


def load(path: Path, form: str, threads: int, longest: int) -> Llama:
    return Llama(path, threads, longest)


if __name__ == "__main__":
    main(make, load)
