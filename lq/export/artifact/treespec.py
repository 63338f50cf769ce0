"""The structure of a model's outputs as text: written by torch's pytree, and checked before torch reads it.

``treespec_loads`` imports the module that a ``defaultdict`` or an enumeration names.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from lq.compat.torch_private import SERIALIZED_TYPE_TO_PYTHON_TYPE, TreeSpec, treespec_loads
from lq.fields import Field, parse_json

_BUILTIN = ("dict", "list", "set", "tuple", "int", "float", "str", "bool")


def load_treespec(text: str, where: str) -> TreeSpec:
    """Read a structure, if it names nothing that would have to be imported.

    Args:
        text: as ``treespec_dumps`` wrote it.
        where: file and field that it comes from.

    Raises:
        ValueError: if it is not such a text, or names a class that this process does not know.

    Example:
        >>> from torch.utils._pytree import treespec_dumps, tree_flatten
        >>> load_treespec(treespec_dumps(tree_flatten([1, (2,)])[1]), "lq.json").num_leaves
        2
        >>> load_treespec('[1, {"type": "os.path", "context": "null", "children_spec": []}]', "lq.json")
        Traceback (most recent call last):
        ...
        ValueError: lq.json[1] names the class 'os.path', which this process does not know. Import ...
    """
    schema = Field(parse_json(text, where), where).each()
    if len(schema) != 2 or schema[0].value != 1:
        raise ValueError(f"{where} is not a structure of format 1, which torch's treespec_dumps writes.")
    _check(schema[1])
    try:
        return treespec_loads(text)
    except Exception as error:  # whatever a class does with a context of another one
        raise ValueError(f"{where} is not a structure that torch can read: {error}") from error


def _check(node: Field) -> None:
    kind, context, children = node["type"], node["context"], node["children_spec"].each()
    if kind.value is None:
        if context.value is not None or children:
            raise node.error("a leaf without context and children")
        return
    name = kind.text()
    if name not in SERIALIZED_TYPE_TO_PYTHON_TYPE:
        raise ValueError(
            f"{node.where} names the class {name!r}, which this process does not know. Import the package that defines "
            "it first, or, if you trust where the file comes from, give trust=True."
        )
    known = _CONTEXTS.get(name, _check_other)
    known(context, len(children))
    for child in children:
        _check(child)


def _check_keys(context: Field, count: int) -> None:
    keys = Field(parse_json(context.text(), context.where), context.where).each()
    if len(keys) != count or not all(isinstance(key.value, (str, int, float, bool, type(None))) for key in keys):
        raise context.error(f"a list of {count} keys")


def _check_factory(context: Field, count: int) -> None:
    named = context["default_factory_module"].value, context["default_factory_name"].value
    if named != (None, None) and (named[0] != "builtins" or named[1] not in _BUILTIN):
        raise context.error(f"a factory of builtins ({', '.join(_BUILTIN)})")
    _check_keys(Field(json.dumps(context["dict_context"].value), f"{context.where}.dict_context"), count)


def _check_nothing(context: Field, count: int) -> None:
    if context.value != "null":
        raise context.error("'null'")


def _check_length(context: Field, count: int) -> None:
    length = Field(parse_json(context.text(), context.where), context.where)
    if length.value is not None:
        length.integer(count)


def _check_other(context: Field, count: int) -> None:
    """Of a class that a package has registered: anything but what torch would import."""
    if any(word in json.dumps(context.value) for word in ("__enum__", "fqn", "module")):
        raise context.error("a context that names no module")


_CONTEXTS: dict[str, Callable[[Field, int], None]] = {
    "builtins.dict": _check_keys,
    "builtins.list": _check_nothing,
    "builtins.tuple": _check_nothing,
    "collections.OrderedDict": _check_keys,
    "collections.defaultdict": _check_factory,
    "collections.deque": _check_length,
}


def nothing_to_import(text: str) -> bool:
    """Whether :func:`load_treespec` reads a structure in any process.

    Example:
        >>> from collections import OrderedDict
        >>> from torch.utils._pytree import tree_flatten, treespec_dumps
        >>> nothing_to_import(treespec_dumps(tree_flatten(OrderedDict(logits=1))[1]))
        True
        >>> nothing_to_import('[1, {"type": "os.path", "context": "null", "children_spec": []}]')
        False
    """
    try:
        _check(Field(json.loads(text)[1], "structure"))
    except ValueError:
        return False
    return True
