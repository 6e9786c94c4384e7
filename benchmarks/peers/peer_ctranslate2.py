"""CTranslate2, from its own converter; the format is int8. `make` wants torch and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import check, main


def make(source: Path, output: Path, form: str) -> None:
    command = [str(Path(sys.executable).parent / "ct2-transformers-converter")]
    command += ["--model", str(source), "--output_dir", str(output), "--quantization", form]
    subprocess.run([*command, "--low_cpu_mem_usage", "--force"], check=True)


class CTranslate2:
    def __init__(self, path: Path, form: str, threads: int) -> None:
        import ctranslate2

        self._model = ctranslate2.Generator(
            str(path), device="cpu", compute_type=form, intra_threads=threads
        )
        self._words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        times: list[float] = []

        def stamp(step: Any) -> bool:
            times.append(time.perf_counter())
            return False

        begin = time.perf_counter()
        self._model.generate_batch(
            [[self._words[token] for token in prompt]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=stamp,
        )
        check(len(times) == count, f"{len(times)} tokens came instead of {count}")
        return times[0] - begin, times[-1] - times[0]


def load(path: Path, form: str, threads: int, longest: int) -> CTranslate2:
    return CTranslate2(path, form, threads)


if __name__ == "__main__":
    main(make, load)
