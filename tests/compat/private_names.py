"""Private names of PyTorch, Lightning and argparse in the sources of lq, found in their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LQ = Path(__file__).parents[2] / "lq"

# Attributes that subclasses and tools of modules and operations have always used; test_torch_private.py tries them.
COMMON = {
    "_buffers", "_conv_forward", "_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters",  # nn.Module
    "_opname", "_overloadname", "_schema",  # operations
    "_exit", "_getframe",  # documented by Python
}  # fmt: skip


def is_private(name: str) -> bool:
    """Whether a part of a dotted name is private."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _own_names(trees: list[ast.Module]) -> set[str]:
    """What lq itself defines: functions, classes, variables, and attributes of its objects."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id in ("self", "cls") else set()
    return names


def _of_others(tree: ast.Module, own: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lq"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and node.attr not in own | COMMON:
            yield node.attr


def private_names(folder: Path = LQ) -> dict[str, set[str]]:
    """File -> the private names of others in it; of a folder like ``lq``, its room ``compat`` apart."""
    files = sorted(folder.rglob("*.py"))
    trees = {file.relative_to(folder): ast.parse(file.read_text()) for file in files}
    own = _own_names(list(trees.values()))
    found = {str(file): {name for name in _of_others(tree, own) if is_private(name)} for file, tree in trees.items()}
    return {file: names for file, names in found.items() if names and not file.startswith("compat")}
