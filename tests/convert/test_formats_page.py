"""docs/formats.md names what is read: types, sizes and architectures."""

import re

from source_folder import REPO

from sterna.checkpoint.ggml_types import GGML_TYPES
from sterna.convert.gguf_architectures import ARCHITECTURES
from sterna.quantize.ggml_blocks import GGML_SCHEMES

PAGE = (REPO / "docs" / "formats.md").read_text()


def test_types_and_their_sizes() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)
    sizes = {t.name: 8 * t.bytes / t.weights for t in GGML_TYPES.values()}
    assert {name: (float(file), float(here)) for name, file, here in rows} == {
        name: (sizes[name], scheme.bits_per_weight) for name, scheme in GGML_SCHEMES.items()
    }


def test_architectures() -> None:
    sentence = PAGE.split("Architectures: ")[1].split(".")[0]
    assert set(re.findall(r"[a-z][\w-]+", sentence)) >= set(ARCHITECTURES)
