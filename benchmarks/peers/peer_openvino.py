"""OpenVINO GenAI, from optimum-intel's export; the format is int4.

Groups of 32 and all layers, as in Sterna's q4f16_1. `make` wants `optimum-cli` beside the Python
that runs it (optimum-intel[nncf] and torch), `run` only openvino-genai.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from common import check, main

_OPTIONS = ("--sym", "--ratio", "1.0", "--group-size", "32", "--all-layers")


def make(source: Path, output: Path, form: str) -> None:
    command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino"]
    command += ["-m", str(source), "--task", "text-generation-with-past", "--weight-format", form]
    subprocess.run([*command, *_OPTIONS, str(output)], check=True)


class OpenVino:
    def __init__(self, path: Path, threads: int) -> None:
        import numpy as np
        import openvino as ov
        import openvino_genai as genai

        class Stamps(genai.StreamerBase):  # type: ignore[misc, name-defined]
            """When tokens came."""

            def __init__(self) -> None:
                super().__init__()
                self.times: list[float] = []

            def write(self, token: int | list[int]) -> genai.StreamingStatus:
                now = time.perf_counter()
                self.times += [now] * (1 if isinstance(token, int) else len(token))
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        self._np, self._ov, self._genai, self._stamps = np, ov, genai, Stamps
        self._pipeline = genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        ids = self._ov.Tensor(self._np.array([prompt], self._np.int64))
        mask = self._ov.Tensor(self._np.ones((1, len(prompt)), self._np.int64))
        stamps = self._stamps()
        begin = time.perf_counter()
        self._pipeline.generate(self._genai.TokenizedInputs(ids, mask), config, stamps)
        check(len(stamps.times) == count, f"{len(stamps.times)} tokens came instead of {count}")
        return stamps.times[0] - begin, stamps.times[-1] - stamps.times[0]


def load(path: Path, form: str, threads: int, longest: int) -> OpenVino:
    return OpenVino(path, threads)


if __name__ == "__main__":
    main(make, load)
