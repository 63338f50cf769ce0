"""The placeholders of a captured graph, which is called as the module is, and its output."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.tracing.fixed_arguments import PLAIN, as_tuples, is_plain, note_fixed
from lq.tracing.inputs import named_arguments
from lq.tracing.structure import Leaf, is_record, leaves_of, map_structure


@fx.wrap
def ordered_dict(items: list[tuple[Any, Any]]) -> OrderedDict[Any, Any]:
    """An ``OrderedDict``, of which a graph would make a plain ``dict``.

    Example:
        >>> ordered_dict([("logits", 1), ("loss", 2)]) == OrderedDict(logits=1, loss=2)
        True
    """
    return OrderedDict(items)


@fx.wrap
def field_of(record: Any, name: str) -> Any:
    """A field of a dataclass, or of the dict that stands for it where its class is not known.

    Example:
        >>> field_of(Leaf(3), "index"), field_of({"index": 3}, "index")
        (3, 3)
    """
    return record[name] if isinstance(record, dict) else getattr(record, name)


def add_placeholders(graph: fx.Graph, target: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Add a placeholder for every argument of ``target.forward``, and what takes containers apart.

    Arguments that hold no tensor are there to be called with, but what they are is fixed in the graph.

    Args:
        graph: is empty.
        target: the module.
        args: of a call, with leaves in the places of tensors.
        kwargs: likewise.

    Returns:
        the nodes of the leaves, in their order.

    Example:
        >>> graph = fx.Graph()
        >>> add_placeholders(graph, nn.MultiheadAttention(4, 1), (Leaf(0), Leaf(1), Leaf(2)), {"need_weights": False})
        [query, key, value]
        >>> [(node.target, node.args) for node in graph.nodes][3:5]
        [('key_padding_mask', (None,)), ('need_weights', (False,))]
    """
    rows = arguments_of(target, args, kwargs)
    nodes = []
    has_default = False
    for name, _, default in rows:
        has_default = has_default or default is not inspect.Parameter.empty
        given = () if not has_default else (as_tuples(default) if is_plain(default) else None,)
        nodes.append(graph.create_node("placeholder", name, args=given, name=name))
    found: dict[int, fx.Node] = {}
    for node, (_, value, _) in zip(nodes, rows, strict=True):
        if not leaves_of(value):
            note_fixed(node, value)
        _take_apart(graph, node, value, found)
    return [found[index] for index in range(len(found))]


def arguments_of(target: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value and default of every argument of a call; those of ``*args`` are numbered.

    Example:
        >>> [row[:2] for row in arguments_of(nn.Bilinear(1, 1, 1), (0,), {"input2": 1})]
        [('input1', 0), ('input2', 1)]
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(target.forward).parameters.items()}
    return [
        (name, value, defaults.get(name, inspect.Parameter.empty) if leaves_of(value) else value)
        for name, value in named_arguments(target, args, kwargs, defaults=True).items()
    ]


def _take_apart(graph: fx.Graph, node: fx.Node, value: Any, found: dict[int, fx.Node]) -> None:
    if isinstance(value, Leaf):
        found[value.index] = node
        return
    if is_record(value) and not isinstance(value, Mapping):
        parts: list[tuple[Any, Any]] = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
        function: Any = field_of
    else:
        parts = list(value.items()) if isinstance(value, Mapping) else []
        parts = list(enumerate(value)) if isinstance(value, (tuple, list)) else parts
        function = operator.getitem
    for key, part in parts:
        if leaves_of(part):
            taken = graph.call_function(function, (node, key))
            taken.meta["is_wrapped"] = function is field_of
            _take_apart(graph, taken, part, found)


def output_of(graph: fx.Graph, structure: Any, results: list[Any]) -> Any:
    """What the graph returns: the structure with results in the places of leaves, of classes that fx has.

    Named tuples and ordered dicts are calls, as fx cannot write down all places in which they may be. Mappings of other
    classes and dataclasses become dicts, and what fx cannot write down becomes ``None``.

    Example:
        >>> output_of(fx.Graph(), {"loss": None, "logits": (Leaf(0), 3)}, ["node"])
        {'loss': None, 'logits': ('node', 3)}
    """

    def called(function: Any, *parts: Any) -> fx.Node:
        node = graph.call_function(function, parts)
        node.meta["is_wrapped"] = True  # unpickling traces the code once more, and has to keep the call
        return node

    def made(value: Any) -> Any:
        if isinstance(value, Leaf):
            return results[value.index]
        if type(value) is OrderedDict:
            return called(ordered_dict, [(key, made(part)) for key, part in value.items()])
        if _is_named_tuple(type(value)):
            return called(type(value), *map(made, value))
        if isinstance(value, Mapping):
            return {key: made(part) for key, part in value.items()}
        if is_record(value):
            return {field.name: made(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return map_structure(value, made)
        return value if isinstance(value, PLAIN) else None

    return made(structure)


def opened_output(output: Any) -> Any:
    """What a graph returns, of :func:`output_of` or a copy, with dicts and tuples in the places of its calls.

    Example:
        >>> graph = fx.Graph()
        >>> opened_output([output_of(graph, OrderedDict(loss=None, logits=(Leaf(0), 3)), ["node"])])
        [{'loss': None, 'logits': ('node', 3)}]
    """
    if isinstance(output, fx.Node):
        if output.target is ordered_dict:
            pairs: Any = output.args[0]
            return {key: opened_output(part) for key, part in pairs}
        return tuple(map(opened_output, output.args)) if _is_named_tuple(output.target) else output
    if isinstance(output, dict):
        return {key: opened_output(part) for key, part in output.items()}
    if isinstance(output, (tuple, list)):
        parts = map(opened_output, output)
        return tuple(parts) if isinstance(output, tuple) else list(parts)
    return output


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
