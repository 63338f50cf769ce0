"""Arguments and sizes that a captured graph holds as constants, so that it refuses others."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from lq.checks import shown
from lq.compat.torch_private import is_traced

_FIXED, _DESCRIBED = "lq_fixed", "lq_described"  # in the ``meta`` of a placeholder
_SIZES = "lq_sizes"  # in the ``meta`` of an input tensor
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def is_plain(value: Any) -> bool:
    """Whether a graph can hold a value: numbers, text and the like, and lists, tuples and dicts of those.

    Example:
        >>> is_plain({"size": [2, 3], "mode": None}), is_plain({1: 2}), is_plain(slice(2))
        (True, False, False)
    """
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(part) for key, part in value.items())
    return all(map(is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, PLAIN)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, or both NaN, which equals nothing."""
    return bool(one == other) or repr(one) == repr(other)


def as_tuples(value: Any) -> Any:
    """The same with tuples in the place of lists, which mean the same to most code.

    Example:
        >>> as_tuples({"sizes": [2, [3, 4]]})
        {'sizes': (2, (3, 4))}
    """
    if isinstance(value, dict):
        return {key: as_tuples(part) for key, part in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


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
    if given is fixed or (is_plain(given) and _is_same(as_tuples(given), as_tuples(fixed))):
        return
    raise ValueError(_about_fixed(name, repr(fixed), shown(given) if is_plain(given) else f"a {type(given).__name__}"))


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


def note_fixed(node: fx.Node, value: Any) -> None:
    """Note on the placeholder of an argument that holds no tensor what it is, for :func:`refuse_other_arguments`.

    Args:
        node: the placeholder.
        value: the argument, which is fixed in the graph.

    Example:
        >>> graph = fx.Graph()
        >>> note_fixed(graph.placeholder("scale", default_value=2), 2)
        >>> _ = graph.output(1)
        >>> refuse_other_arguments(graph)
        >>> fx.GraphModule({}, graph)(2)
        1
    """
    if is_plain(value):
        node.meta[_FIXED] = as_tuples(value)
    else:
        node.meta[_DESCRIBED] = described(value)


def note_sizes(inputs: list[fx.Node], names: list[str], sizes: list[tuple[int | None, ...]]) -> None:
    """Note which sizes of its inputs a graph may hold as constants, for :func:`refuse_other_arguments`.

    Args:
        inputs: of :func:`~lq.tracing.call_signature.add_placeholders`.
        names: of each.
        sizes: of each, ``None`` where the graph takes any.

    Example:
        >>> from lq.tracing.call_signature import add_placeholders
        >>> from lq.tracing.structure import Leaf
        >>> graph = fx.Graph()
        >>> (x,) = add_placeholders(graph, torch.nn.ReLU(), (Leaf(0),), {})
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
        graph: has the placeholders of :func:`~lq.tracing.call_signature.add_placeholders`, or copies of them.

    Example:
        >>> from lq.tracing.call_signature import add_placeholders
        >>> from lq.tracing.structure import Leaf
        >>> graph = fx.Graph()
        >>> (x,) = add_placeholders(graph, torch.nn.Bilinear(1, 1, 1), (Leaf(0), None), {})
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
