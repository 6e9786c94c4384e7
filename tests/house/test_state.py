"""No module holds state that changes: what a function knows, it is given."""

import ast
from collections.abc import Iterator
from typing import TypeGuard

from source_files import modules

MUTABLE_CALLS = {
    *("dict", "list", "set", "bytearray", "defaultdict", "Counter", "OrderedDict", "deque"),
    *("local", "Lock", "RLock", "Condition", "Event", "Queue", "WeakValueDictionary"),
}
MUTATORS = {
    *("append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert"),
    *("remove", "discard", "appendleft", "popleft", "sort", "reverse"),
}


def module_names(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of what a module assigns at its top."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value


def is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(value, ast.Dict | ast.List | ast.Set | ast.ListComp | ast.DictComp)


def is_constant_name(name: str) -> bool:
    return name.lstrip("_").isupper() or (name.startswith("__") and name.endswith("__"))


def changes(tree: ast.Module, name: str) -> Iterator[int]:
    """Lines of functions that change the module's own `name` in place."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield from (node.lineno for node in ast.walk(function) if _is_change(node, name))


def _is_change(node: ast.AST, name: str) -> TypeGuard[ast.expr]:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=verb)):
            return owner == name and verb in MUTATORS
        case ast.Subscript(value=ast.Name(id=owner), ctx=ast.Store() | ast.Del()):
            return owner == name
    return False


def test_containers_at_the_top_are_constants() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in modules().items()
        for name, value in module_names(tree)
        if is_mutable(value) and not is_constant_name(name)
    ]
    assert wrong == []


def test_no_constant_changes() -> None:
    wrong = [
        f"{path}:{line} changes {name}"
        for path, tree in modules().items()
        for name, value in module_names(tree)
        for line in changes(tree, name)
    ]
    assert wrong == []


def test_no_global_statement() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    assert wrong == []


def test_the_rule_sees_a_change() -> None:
    tree = ast.parse("CACHE = {}\ndef f(k):\n    CACHE[k] = 1\n    CACHE.update(k)\n")
    assert sorted(changes(tree, "CACHE")) == [3, 4]
