"""The placeholders of a captured graph, which is called as the module is, and its output."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from lq.checks import shown
from lq.compat.torch_private import is_traced
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


@fx.wrap
def require_fixed(name: str, fixed: Any, given: Any) -> None:
    """Refuse an argument that is not what it was in the call that a graph was captured of.

    Args:
        name: of the argument.
        fixed: what it was.
        given: what it is.

    Raises:
        ValueError: if it is another one.

    Example:
        >>> require_fixed("sizes", (2, 3), [2, 3])  # lists and tuples mean the same
        >>> require_fixed("scale", 2, 3)
        Traceback (most recent call last):
        ValueError: the model was converted with scale=2, which is fixed in it, but was called with scale=3. ...
    """
    if given is fixed or (_is_plain(given) and _is_same(_as_tuples(given), _as_tuples(fixed))):
        return
    raise ValueError(_about_fixed(name, repr(fixed), shown(given) if _is_plain(given) else f"a {type(given).__name__}"))


@fx.wrap
def require_described(name: str, fixed: str, given: Any) -> None:
    """The same of an object that no graph can hold, such as an enum or a slice, by what ``repr`` says of it.

    Args:
        name: of the argument.
        fixed: what :func:`described` says of what it was.
        given: what it is; ``None`` stands for it, too, as a graph has no other default.

    Raises:
        ValueError: if it is another one.

    Example:
        >>> require_described("part", "slice(0, 2, None)", slice(0, 3))
        Traceback (most recent call last):
        ValueError: the model was converted with part=slice(0, 2, None), which is fixed in it, but was called with ...
    """
    if given is not None and described(given) != fixed:
        raise ValueError(_about_fixed(name, fixed, shown(given)))


def described(value: Any) -> str:
    """What ``repr`` says of an object, but for where it lies in memory.

    Example:
        >>> described(slice(0, 2)), described(object())
        ('slice(0, 2, None)', '<object object>')
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _about_fixed(name: str, fixed: str, given: str) -> str:
    return (
        f"the model was converted with {name}={fixed}, which is fixed in it, but was called with {name}={given}. "
        f"Prepare it with inputs that have that {name}."
    )


@fx.wrap
def require_sizes(tensor: torch.Tensor, shape: tuple[int | None, ...], name: str) -> None:
    """Refuse a tensor of another size than in the call that a graph was captured of, which it may hold as a constant.

    Args:
        tensor: an input.
        shape: its sizes, ``None`` where it may have any.
        name: of it.

    Raises:
        ValueError: if it has others.

    Example:
        >>> require_sizes(torch.zeros(8, 3, 5), (None, 3, 4), "x")
        Traceback (most recent call last):
        ValueError: the model was converted for x of the shape (any, 3, 4), but was called with (8, 3, 5). Its code ...
    """
    if is_traced():  # sizes are tensors there, and what is traced is called with the sizes of now
        return
    given = tuple(tensor.shape)
    other = [dim for dim, (want, got) in enumerate(zip(shape, given, strict=False)) if want is not None and want != got]
    if other and len(given) == len(shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"the model was converted for {name} of the shape ({wanted}), but was called with {given}. Its code may "
            f"hold the size as a constant; dynamic_axes={{{name!r}: {other}}} leaves it open."
        )


_FIXED, _DESCRIBED = "lq_fixed", "lq_described"  # in the ``meta`` of a placeholder
_SIZES = "lq_sizes"  # in the ``meta`` of an input tensor
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def _is_plain(value: Any) -> bool:
    """Whether a graph can hold a value: numbers, text and the like, and lists, tuples and dicts of those."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, _PLAIN)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, or both NaN, which equals nothing."""
    return bool(one == other) or repr(one) == repr(other)


def _as_tuples(value: Any) -> Any:
    """The same with tuples in the place of lists, which mean the same to most code."""
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value


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
        given = () if not has_default else (_as_tuples(default) if _is_plain(default) else None,)
        nodes.append(graph.create_node("placeholder", name, args=given, name=name))
    found: dict[int, fx.Node] = {}
    for node, (_, value, _) in zip(nodes, rows, strict=True):
        if _is_plain(value):
            node.meta[_FIXED] = _as_tuples(value)
        elif not leaves_of(value):
            node.meta[_DESCRIBED] = described(value)
        _take_apart(graph, node, value, found)
    return [found[index] for index in range(len(found))]


def note_sizes(inputs: list[fx.Node], names: list[str], sizes: list[tuple[int | None, ...]]) -> None:
    """Note which sizes of its inputs a graph may hold as constants, for :func:`refuse_other_arguments`.

    Args:
        inputs: of :func:`add_placeholders`.
        names: of each.
        sizes: of each, ``None`` where the graph takes any.

    Example:
        >>> graph = fx.Graph()
        >>> (x,) = add_placeholders(graph, nn.ReLU(), (Leaf(0),), {})
        >>> note_sizes([x], ["input"], [(None, 3)])
        >>> _ = graph.output(x)
        >>> refuse_other_arguments(graph)
        >>> fx.GraphModule({}, graph)(torch.zeros(8, 4))
        Traceback (most recent call last):
        ValueError: the model was converted for input of the shape (any, 3), but was called with (8, 4). ...
    """
    for node, name, shape in zip(inputs, names, sizes, strict=True):
        node.meta[_SIZES] = shape, name


def refuse_other_arguments(graph: fx.Graph) -> None:
    """Let a graph refuse arguments and sizes that are fixed in it, if they are given as something else.

    Args:
        graph: has the placeholders of :func:`add_placeholders`, or copies of them.

    Example:
        >>> graph = fx.Graph()
        >>> (x,) = add_placeholders(graph, nn.Bilinear(1, 1, 1), (Leaf(0), None), {})
        >>> _ = graph.output(x)
        >>> refuse_other_arguments(graph)
        >>> fx.GraphModule({}, graph)(1, 2)
        Traceback (most recent call last):
        ValueError: the model was converted with input2=None, which is fixed in it, but was called with input2=2. ...
    """
    kinds = ((require_fixed, _FIXED), (require_described, _DESCRIBED))
    fixed = [(node, *kind) for node in graph.nodes for kind in kinds if kind[1] in node.meta]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        for node, require, key in fixed:
            check = graph.call_function(require, (str(node.target), node.meta[key], node))
            check.meta["is_wrapped"] = True
    for node in [node for node in graph.nodes if _SIZES in node.meta]:
        with graph.inserting_after(node if node.op != "placeholder" else first.prev):
            check = graph.call_function(require_sizes, (node, *node.meta[_SIZES]))
            check.meta["is_wrapped"] = True


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
        return value if isinstance(value, _PLAIN) else None

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
