"""Names of hardware live in the target's own row, renderer, device and table, and nowhere else.

Everyone else asks for a capability: `target.fma`, never which machine it is.
"""

import ast
import re
from collections.abc import Iterator

from source_files import modules

NAMES = re.compile(
    r"(?i)cuda|metal\b|webgpu|wgsl|vulkan|spir-?v\b|opencl|\bhip\b|\brocm"
    r"|avx|\bssse?\d|\bfma3|x86|amd64|aarch64|arm64|\bneon\b|wasm"
)
ALLOWED = (
    "base/cpu_features.py",  # what this machine's processor can do
    "base/target.py",  # the rows
    "codegen/",  # the renderers and the compilers that they feed
    "runtime/cpu_report.py",  # what `sterna devices` says of the processor
    "runtime/cuda.py",
    "runtime/hip.py",
    "runtime/metal.py",
    "runtime/opencl.py",
    "runtime/vulkan.py",
    "runtime/vulkan_api.py",
    "runtime/vulkan_code.py",
    "runtime/vulkan_features.py",
    "runtime/vulkan_instance.py",
    "runtime/webgpu.py",
    "runtime/library.py",  # which machine a library file was made for
    "schedule/tables/",
    "cli/compile.py",  # the examples of --help
    "serve/web.py",  # a browser's policy for what a page may run is spelled so
)
IDENTITY = {"spec", "renderer", "device", "triple", "mcpu"}  # fields that say which target it is
# Who may compare these: the toolchain that serves a triple.
MAY_COMPARE = ("base/target.py", "codegen/toolchain.py")


def documentation(tree: ast.Module) -> set[int]:
    """The ids of docstrings, which may say what they like."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every identifier and every string of a file."""
    skipped = documentation(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            if isinstance(node.value, str):
                yield line, node.value
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.arg | ast.keyword):
            yield line, node.arg or ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name


def test_no_hardware_name_outside_its_rooms() -> None:
    wrong = [
        f"{path}:{line}: {found.group()!r} in {word[:60]!r}"
        for path, tree in modules().items()
        if not path.startswith(ALLOWED)
        for line, word in words(tree)
        if (found := NAMES.search(word))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_comparison_asks_which_target_it_is() -> None:
    wrong = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in modules().items()
        if not path.startswith(MAY_COMPARE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Attribute)
        and side.attr in IDENTITY
        and ast.unparse(side.value).endswith("target")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_sees_a_name() -> None:
    tree = ast.parse('"""cuda"""\ndef f(x):\n    "metal"\n    return x.kind == "cuda"\n')
    assert [word for _, word in words(tree) if NAMES.search(word)] == ["cuda"]
