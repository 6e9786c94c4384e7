"""onnxruntime-genai, from its own model builder; the format is int4.

Groups of 32, as in Sterna's q4f16_1, and accuracy level 4, with which its products are those of
8-bit activations: its quickest on a CPU. `make` wants torch, transformers, onnx and onnx-ir.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from common import check, main

_OPTIONS = ("int4_accuracy_level=4", "int4_block_size=32")


def make(source: Path, output: Path, form: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(source), "-o", str(output), "-p", form, "-e", "cpu"]
    command += ["-c", str(output.parent / "cache"), "--extra_options", *_OPTIONS]
    subprocess.run(command, check=True)


class OnnxRuntime:
    def __init__(self, path: Path, threads: int, longest: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(path))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._og, self._model, self._longest = og, og.Model(config), longest

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        params = self._og.GeneratorParams(self._model)
        length = len(prompt) + count
        params.set_search_options(max_length=self._longest, min_length=length, do_sample=False)
        generator = self._og.Generator(self._model, params)
        begin = time.perf_counter()
        generator.append_tokens([prompt])
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        check(len(generator.get_sequence(0)) == length, "the answer is not as long as asked")
        return first - begin, end - first


def load(path: Path, form: str, threads: int, longest: int) -> OnnxRuntime:
    return OnnxRuntime(path, threads, longest)


if __name__ == "__main__":
    main(make, load)
