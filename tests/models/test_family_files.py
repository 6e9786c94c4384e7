"""Family files: short, unlike each other, and all on the documentation's page."""

from __future__ import annotations

import ast
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import tiny_families as tiny

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.models import families, family
from sterna.models.page import docs_page

REPO = Path(__file__).resolve().parents[2]
FILES = {
    path.stem: path
    for path in sorted((REPO / "src" / "sterna" / "models").glob("*.py"))
    if "(Family):" in path.read_text() or "MODEL_TYPES" in path.read_text()
    if path.stem not in ("family", "page", "__init__")
}
MOST_LINES = 120
MOST_ALIKE = 1 / 3  # of two files' lines, imports and docstrings aside


def code(path: Path) -> list[str]:
    """Lines of code without imports, docstrings and decorators."""
    tree, text = ast.parse(path.read_text()), path.read_text().splitlines()
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            first = node.body[0]
            left_out |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    kept = (line.strip() for i, line in enumerate(text, 1) if i not in left_out)
    return [line for line in kept if line and line != "@classmethod"]


def test_a_family_file_is_short() -> None:
    assert len(FILES) >= 19
    for path in FILES.values():
        assert len(path.read_text().splitlines()) <= MOST_LINES, path.name


def test_family_files_do_not_repeat_each_other() -> None:
    own = {name: code(path) for name, path in FILES.items()}
    for name, lines in own.items():
        for other, others in own.items():
            alike = SequenceMatcher(None, lines, others, autojunk=False).ratio()
            assert name == other or alike <= MOST_ALIKE, f"{name} and {other}: {alike:.2f}"


def test_the_page_of_families_is_current() -> None:
    assert (REPO / "docs" / "models.md").read_text() == docs_page(), (
        "write it again: python -m sterna.models.page > docs/models.md"
    )


def test_every_family_has_a_golden() -> None:
    tested = {str(config["model_type"]) for config in tiny.MODELS.values()}
    elsewhere = {"llama", "mistral", "gemma3"}  # tiny.py; the other name of gemma3_text
    elsewhere |= {"llava", "qwen2_5_vl", "qwen2_vl"}  # test_vision.py, test_grid_vision.py
    elsewhere |= {"llama4"}  # test_llama4.py
    elsewhere |= {"qwen3_5", "qwen3_5_moe"}  # test_qwen35.py
    elsewhere |= {"RefinedWeb", "RefinedWebModel"}  # Falcon's first names: test_real_configs.py
    assert tested | elsewhere == set(families())
    assert {path.stem for path in tiny.GOLDENS.glob("*.npz")} == set(tiny.MODELS)


@pytest.mark.parametrize("variant", tiny.MODELS)
def test_what_a_family_does_not_read_is_refused(variant: str) -> None:
    config = tiny.MODELS[variant]
    for change in (
        {"some_new_option": 3},
        {"architectures": ["SomethingElse"]},
        {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
    ):
        with pytest.raises(UnsupportedModel):
            family(config).read_config({**config, **change})


@pytest.mark.parametrize("variant", tiny.MODELS)
@pytest.mark.parametrize("value", [0, -1, "8", True, 1e9, None, [4]])
def test_a_wrong_size_is_one_sentence(variant: str, value: object) -> None:
    config = dict(tiny.MODELS[variant])
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    with pytest.raises(CheckpointError) as caught:
        family(config).read_config({**config, key: value})
    assert "\n" not in str(caught.value)
