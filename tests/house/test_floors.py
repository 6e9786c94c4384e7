"""The law of imports: a file imports from lower floors only, never sideways, never in a function.

`docs/architecture.md` draws the same house.
"""

import ast
from collections.abc import Iterator

from source_files import modules, room


def floors(*rooms: str) -> dict[str, int]:
    """The floor of each room; rooms that share a floor share a string."""
    return {room: floor for floor, names in enumerate(rooms, 1) for room in names.split()}


COMPILE = floors(
    "checkpoint ir",
    "ops",
    "nn schedule codegen",
    "quantize kernels",
    "models passes",
    "program convert",
    "sight bounds",
    "compiler",
)
RUN = floors("runtime text", "engine quality", "serve")
ABOVE = floors(
    "inspection quality web_folder", "tune", "jit found", "local", "cli", "__init__ __main__"
)
GROUND = {"base", "demo"}  # demo is data: the model that ships with the package
# The converter checks the tokenizer and chat template that the run wing will read.
BRIDGES = {("convert", "text")}
# Only these import inside a function: they save what a command does not need.
LAZY_ROOMS = {"cli", "__init__", "local"}
LAZY_LIBRARIES = {"asyncio", "llguidance", "PIL", "huggingface_hub", "ray", "tokenizers"}
FOREIGN = {"torch", "transformers", "tvm", "mlc_llm"}  # what the package does without


def may_import(reader: str, read: str) -> bool:
    if reader == read or read in GROUND or (reader, read) in BRIDGES:
        return True
    if reader in ABOVE:
        return read not in ABOVE or ABOVE[read] < ABOVE[reader]
    wing = COMPILE if reader in COMPILE else RUN
    return read in wing and wing[read] < wing.get(reader, 0)


def names(node: ast.AST) -> list[str]:
    """The modules that an import statement may load, dotted."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"a relative import of {node.module}"
    if node.module == "sterna":
        return [f"sterna.{alias.name}" for alias in node.names]
    return [node.module or ""]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for name in names(node):
            yield getattr(node, "lineno", 0), name


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in modules()}
    assert rooms <= {*GROUND, *COMPILE, *RUN, *ABOVE}


def test_imports_go_down() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path, tree in modules().items()
        for line, name in imports(tree)
        if name.startswith("sterna.") and not may_import(room(path), name.split(".")[1])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_inside_a_function() -> None:
    wrong = [
        f"{path}:{line} imports {name} in {function.name}"
        for path, tree in modules().items()
        if room(path) not in LAZY_ROOMS
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line, name in imports(function)
        if name.split(".")[0] not in LAZY_LIBRARIES
    ]
    assert not wrong, "\n".join(wrong)


def test_no_torch() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path, tree in modules().items()
        for line, name in imports(tree)
        if name.split(".")[0] in FOREIGN
    ]
    assert not wrong, "\n".join(wrong)
