"""Looks into archives of PyTorch before PyTorch reads them: loading must run nothing that they name.

``torch.export.load`` unpickles whatever its restricted reader refuses, imports what structures name, looks functions up
by name in ``torch``, evaluates sizes as Python, and executes guards and compiled code. A program that lq writes
needs none of it.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from lq.compat.torch_private import archive_reader
from lq.export.artifact.treespec import load_treespec
from lq.fields import Field, parse_json
from lq.messages import one_line

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_ONE_AT_A_TIME = RLock()
_OPERATION = re.compile(
    r"torch\.ops\.(?!_|import_module|load_library|loaded_libraries|image\b|inductor|c10d|profiler)\w+"
    r"\.(?!from_file)[A-Za-z_]\w*(\.\w+)?"
    r"|torch\.(sym_|_sym_|_check)\w*|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|index)"
)
_SYMBOL = re.compile(r"_?(?:s|u|i|zuf|zf|unbacked)_?\d+|_\d+")
_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "Piecewise"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "ceiling", "floor", "oo", "int_oo", "true", "false"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Where"),
    *("FloorDiv", "ModularIndexing", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "IntTrueDiv"),
    *("FloatTrueDiv", "TruncToInt", "RoundToInt", "ToFloat", "Identity", "IntInfinity", "NegativeIntInfinity"),
    *("L", "args", "math", "inf", "torch"),
}
_METHODS = {
    *("size", "stride", "storage_offset", "dim", "ndim", "shape", "sqrt", "floor", "ceil", "inf"),
    *("sym_max", "sym_min", "sym_float", "sym_int", "sym_ite", "sym_not", "_sym_sqrt"),  # of torch
}
_NODES = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_HUGE = 64  # largest exponent


@contextmanager
def only_plain_pickles(wanted: bool = True) -> Iterator[None]:
    """Let ``torch.load`` read plain data only, whatever code calls it in this context.

    PyTorch asks an environment variable, which all threads share: one thread at a time is in this context.

    Args:
        wanted: ``False`` leaves everything as it is, once no other thread has it otherwise.

    Example:
        >>> with only_plain_pickles():
        ...     print(os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
        1
    """
    with _ONE_AT_A_TIME:
        if not wanted:
            yield
            return
        before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
        os.environ[_FORCE] = "1"
        try:
            yield
        finally:
            del os.environ[_FORCE]
            os.environ.update({name: value for name, value in before.items() if value is not None})


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The records of an archive as PyTorch's own reader finds them: another one could be shown other records.

    Raises:
        ValueError: if it is not such an archive.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"x": torch.ones(3)}, f"{folder}/x.pt")
        ...     {name: len(content) for name, content in read_archive(Path(folder, "x.pt")) if name.startswith("data/")}
        {'data/0': 12}
    """
    try:
        reader: Any = archive_reader(str(path))
        for name in reader.get_all_records():
            yield name, reader.get_record(name)
    except RuntimeError as error:
        raise ValueError(f"{path} is not an archive of PyTorch: {one_line(error)}") from error


def check_program(path: Path) -> None:
    """Refuse a ``torch.export`` program that would run code when it is loaded.

    Raises:
        ValueError: naming the file, the place in it and what it would run.

    Example:
        >>> import tempfile, torch
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.export.save(program, f"{folder}/x.pt2", extra_files={"more.json": '{"target": "os.system"}'})
        ...     check_program(Path(folder, "x.pt2"))
        Traceback (most recent call last):
        ValueError: ...more.json.target names the function 'os.system', which is not an operation. If you ...
    """
    for name, content in read_archive(path):
        if "aotinductor" in name:
            raise ValueError(f"{path}: {name} is compiled code, which lq never writes. {_trust()}")
        if name.endswith(".json"):
            where = f"{path}: {name}"
            _check_entries(Field(parse_json(content, where), where))


def _check_entries(field: Field) -> None:
    waiting = [field]
    while waiting:
        current = waiting.pop()
        if isinstance(current.value, dict):
            for key, value in current.items():
                check = _CHECKS.get(key)
                if check is not None:
                    check(value)
                waiting.append(value)
        elif isinstance(current.value, list):
            waiting += current.each()


def _check_operation(field: Field) -> None:
    if isinstance(field.value, str) and not _OPERATION.fullmatch(field.value):
        raise ValueError(
            f"{field.where} names the function {field.value[:80]!r}, which is not an operation. {_trust()}"
        )


def _check_structure(field: Field) -> None:
    if isinstance(field.value, str) and field.value:
        load_treespec(field.value, field.where)


def _check_guards(field: Field) -> None:
    for guard in field.each():
        _check_expression(guard)


def _check_expression(field: Field) -> None:
    """A size as Python: sums, products and comparisons of symbols and numbers."""
    text = field.value
    if not isinstance(text, str):
        return
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) < 10_000 else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = []
    if not nodes or not all(isinstance(node, _NODES) and _is_harmless(node) for node in nodes):
        raise ValueError(f"{field.where} is {text[:80]!r}, which is not a size. {_trust()}")


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return isinstance(node.right, ast.Constant) and isinstance(node.right.value, int) and node.right.value <= _HUGE
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.fullmatch(r"\w[\w. -]*", node.value) is not None
    return True


def _trust() -> str:
    return "If you trust where the file comes from, give trust=True."


_CHECKS = {
    "target": _check_operation,
    "as_operator": _check_operation,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
    "expr_str": _check_expression,
    "guards_code": _check_guards,
}
