"""What each quantization costs in quality, on a small trained model.

    python benchmarks/quality.py [--data ../shared/data] [--schemes q4f16_1 q8f16_1]

The stories model (260 thousand weights, trained on TinyStories) is converted and compiled in every
scheme. Prints and writes benchmarks/results/quality.json: perplexity of 25 stories and of 20
paragraphs of Shakespeare, and next-token agreement with q0f32 on the stories (share of equal most
likely tokens, KL divergence in nats). The same for q0f32 with its keys and values kept in fewer
bits, as `kv_cache`, and for q4f16_1 by what its activations become, as `activations`; bf16 by the
instruction's C model where there is no such instruction, which has its bits. A model this small
suffers more from few bits than large ones do: the figures compare schemes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from sterna.base.artifact import Activations, CompileOptions, KVDtype  # noqa: E402
from sterna.base.target import host_target  # noqa: E402
from sterna.checkpoint.mlc import read_mlc_folder  # noqa: E402
from sterna.compiler import compile_model  # noqa: E402
from sterna.convert import convert_weight, gen_config  # noqa: E402
from sterna.quality import agreement, likelihood  # noqa: E402
from sterna.quantize.scheme import SCHEMES  # noqa: E402
from sterna.runtime import cpu  # noqa: E402
from sterna.runtime.executable import Executable  # noqa: E402
from sterna.text.tokenizer import Tokenizer  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "quality.json"
REFERENCE = "q0f32"
MODEL = Path("models") / "stories260K-hf"
KV_DTYPES: tuple[KVDtype, ...] = ("f16", "q8")
ROUNDED = "q4f16_1"
ACTIVATIONS: tuple[Activations, ...] = ("f32", "i16", "i8", "bf16")  # of ROUNDED
USUAL = CompileOptions(prefill_chunk_size=64)
LONGEST = 256  # tokens of a document

Documents = dict[str, list[list[int]]]


def main() -> None:
    """Measure every scheme asked for against q0f32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=list(SCHEMES))
    args = parser.parse_args()
    found: dict[str, Any] = {}
    caches: dict[str, Any] = {}
    activations: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        texts = documents(args.data)
        reference = load(args.data / MODEL, REFERENCE, Path(scratch) / "reference")
        for name in args.schemes:
            model = load(args.data / MODEL, name, Path(scratch) / name)
            found[name] = measure(reference, model, texts)
            found[name]["bits_per_weight"] = SCHEMES[name].bits_per_weight
            print(f"{name:10}", json.dumps(found[name]), flush=True)
            model.close()
        for kv_dtype in KV_DTYPES:
            options = replace(USUAL, kv_dtype=kv_dtype)
            model = load(args.data / MODEL, REFERENCE, Path(scratch) / kv_dtype, options)
            caches[kv_dtype] = measure(reference, model, texts)
            caches[kv_dtype]["bytes_per_token"] = model.manifest.kv_cache.bytes_per_token
            print(f"{kv_dtype:10}", json.dumps(caches[kv_dtype]), flush=True)
            model.close()
        for kind in ACTIVATIONS:
            options = replace(USUAL, activations=kind)
            model = load(args.data / MODEL, ROUNDED, Path(scratch) / kind, options)
            activations[kind] = measure(reference, model, texts)
            print(f"{kind:10}", json.dumps(activations[kind]), flush=True)
            model.close()
    head = {"model": MODEL.name, "reference": REFERENCE}
    result = {**head, "schemes": found, "kv_cache": caches, "activations": activations}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def documents(data: Path) -> Documents:
    """Token ids with the start token, by corpus."""
    tokenizer = Tokenizer.load(data / MODEL)
    stories = json.loads((data / "text" / "tinystories_100.json").read_text(encoding="utf-8"))
    plays = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    chosen = {"stories": stories[:25], "shakespeare": plays[:20]}
    return {
        name: [tokenizer.encode(text)[:LONGEST] for text in texts] for name, texts in chosen.items()
    }


def load(
    source: Path, scheme: str, folder: Path, options: CompileOptions = USUAL
) -> cpu.CpuExecutable:
    """Convert, compile for this machine and load."""
    convert_weight(source, folder, quantization=scheme)
    gen_config(source, folder, quantization=scheme)
    target = replace(host_target(), bf16_pairs=True)
    library = folder / f"model{target.suffix}"
    compile_model(folder, target, library, options=options)
    return cpu.load(library, read_mlc_folder(folder).tensors, num_pages=LONGEST // 16)


def measure(reference: Executable, model: Executable, texts: Documents) -> dict[str, Any]:
    """Perplexity of each corpus, and the agreement on stories."""
    perplexity = {name: round(likelihood(model, t).perplexity, 4) for name, t in texts.items()}
    compared = asdict(agreement(reference, model, texts["stories"]))
    return {"perplexity": perplexity, **{k: round(v, 7) for k, v in compared.items()}}


if __name__ == "__main__":
    main()
