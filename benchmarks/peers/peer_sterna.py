"""Sterna itself; the format is a scheme, and after a plus sign what its activations become."""

from __future__ import annotations

from pathlib import Path

from common import main

from sterna.base.artifact import CompileOptions
from sterna.base.target import host_target
from sterna.compiler import compile_model
from sterna.convert import convert_weight, gen_config
from sterna.local import Engine
from sterna.tune.database import tuned_plans


def make(source: Path, output: Path, form: str) -> None:
    scheme = form.partition("+")[0]
    convert_weight(source, output, quantization=scheme)
    gen_config(source, output, quantization=scheme)


class Sterna:
    def __init__(self, folder: Path, library: Path, threads: int, longest: int) -> None:
        from sterna.engine.options import EngineOptions

        options = EngineOptions(
            mode="server", threads=threads, max_total_tokens=longest, max_num_sequence=1,
            prefix_cache=False,
        )  # fmt: skip
        self._engine = Engine(folder, library, options=options)

    def answer(self, prompt: list[int], count: int) -> tuple[float, float]:
        result = self._engine.completions.create(
            prompt=prompt, max_tokens=count, min_tokens=count, ignore_eos=True, temperature=0
        )
        timings = result.timings
        assert timings is not None, "a whole answer has timings"
        first = timings.time_to_first_token_s
        return first, (count - 1) / timings.decode_tokens_per_s if count > 1 else 0.0


def load(folder: Path, form: str, threads: int, longest: int) -> Sterna:
    """Compile with this machine's plans, or find what was compiled before."""
    activations = form.partition("+")[2] or None
    target = host_target()
    library = folder.parent / f"{folder.name}-{activations or 'usual'}{target.suffix}"
    options = CompileOptions(activations=activations)  # type: ignore[arg-type]
    plans = tuned_plans(target, lambda text: None)
    compile_model(folder, target, library, options=options, tuned=plans)
    return Sterna(folder, library, threads, longest)


if __name__ == "__main__":
    main(make, load)
