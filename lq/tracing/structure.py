"""Nested arguments and results: their tensors as a flat list, and where in the structure each has its place."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from lq.compat.torch_private import tree_leaves, tree_map_only

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The place of a tensor: its number in the flat list.

    Example:
        >>> Flattener().take((torch.ones(1), None, torch.ones(1)))
        (Leaf(index=0), None, Leaf(index=1))
    """

    index: int


class Flattener:
    """Takes structures apart: tuples, namedtuples, lists, mappings of any class and dataclasses, nested.

    Mappings and dataclasses are rebuilt as they were where the class allows it, else as plain dicts.

    Example:
        >>> flattener = Flattener()
        >>> flattener.take({"x": torch.zeros(1), "more": [None, torch.ones(1)]})
        {'x': Leaf(index=0), 'more': [None, Leaf(index=1)]}
        >>> len(flattener.tensors)
        2
    """

    def __init__(self) -> None:
        self.tensors: list[Any] = []

    def take(self, value: Any) -> Any:
        """The structure with a :class:`Leaf` for every tensor, and every number that depends on the size of one."""
        if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
            self.tensors.append(value)
            return Leaf(len(self.tensors) - 1)
        return map_structure(value, self.take)


def map_structure(value: Any, function: Callable[[Any], Any]) -> Any:
    """``value`` with the function applied to what it directly holds; what holds nothing comes back as it is.

    Example:
        >>> map_structure({"a": 1, "b": 2}, lambda n: n + 1)
        {'a': 2, 'b': 3}
    """
    if isinstance(value, tuple):
        items = [function(item) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        is_size = isinstance(value, torch.Size) and all(isinstance(item, (int, torch.SymInt)) for item in items)
        return torch.Size(items) if is_size else tuple(items)
    if isinstance(value, list):
        return [function(item) for item in value]
    if isinstance(value, Mapping):
        return _like(value, {key: function(item) for key, item in value.items()})
    if is_record(value):
        return _record_like(value, {f.name: function(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """``value`` with the function applied to every tensor in it, however deep.

    Example:
        >>> map_tensors({"x": [torch.ones(2), None]}, lambda t: t * 2)
        {'x': [tensor([2., 2.]), None]}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if not isinstance(value, (tuple, list, Mapping)) and not is_record(value):
        return tree_map_only(torch.Tensor, function, value)  # classes that others have registered
    return map_structure(value, lambda item: map_tensors(item, function))


def on_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor on a device, but for the batch sizes of packed sequences, which stay on the CPU.

    Example:
        >>> on_device({"x": [torch.ones(2), None]}, torch.device("meta"))
        {'x': [tensor(..., device='meta', size=(2,)), None]}
    """
    if isinstance(value, PackedSequence):
        return value.to(device=device)  # type: ignore[call-arg]
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not isinstance(value, (tuple, list, Mapping)) and not is_record(value):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)
    return map_structure(value, lambda item: on_device(item, device))


def without_graph(value: Any) -> Any:
    """``value`` without tensors that autograd or inference mode has made, which could not be copied or written to.

    A tensor that is held twice is still one.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> pair = without_graph((x * 2, x))
        >>> pair[0].requires_grad, pair[1] is x
        (False, True)
    """
    known: dict[int, torch.Tensor] = {}

    def plain(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            return known.setdefault(id(tensor), tensor.clone())
        return tensor if tensor.grad_fn is None else known.setdefault(id(tensor), tensor.detach())

    return map_tensors(value, plain)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors of a structure, in order.

    Example:
        >>> tensors_of({"x": [torch.ones(1), None], "y": torch.zeros(1)})
        [tensor([1.]), tensor([0.])]
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list, Mapping)):
        parts = value.values() if isinstance(value, Mapping) else value
    elif is_record(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:  # classes that others have registered
        return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return [tensor for part in parts for tensor in tensors_of(part)]


def in_plain_containers(value: Any) -> Any:
    """The same values in tuples, lists and dicts, which need none of the code of the training.

    A dataclass becomes a dict of those of its fields that hold tensors: what else it holds is fixed in a graph.

    Example:
        >>> from collections import namedtuple
        >>> in_plain_containers(namedtuple("Pair", "a b")(1, [2]))
        (1, [2])
    """
    if isinstance(value, Mapping):
        return {key: in_plain_containers(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [in_plain_containers(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if is_record(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: in_plain_containers(part) for name, part in parts.items() if tensors_of(part)}
    return value


def in_plain_tuples(value: Any) -> Any:
    """``value`` with plain tuples in the places of named ones.

    Example:
        >>> from collections import namedtuple
        >>> in_plain_tuples({"found": [namedtuple("Pair", "a b")(1, 2)]})
        {'found': [(1, 2)]}
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(map(in_plain_tuples, value))
    return map_structure(value, in_plain_tuples)


def is_record(value: Any) -> bool:
    """Whether ``value`` is an instance of a dataclass.

    Example:
        >>> @dataclasses.dataclass
        ... class Output:
        ...     logits: torch.Tensor
        >>> is_record(Output(torch.ones(1))), is_record(Output), is_record({"logits": torch.ones(1)})
        (True, False, False)
    """
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, Leaf))


def restore(structure: Any, tensors: Any) -> Any:
    """The structure with the tensors in the places of the leaves.

    Example:
        >>> restore({"x": Leaf(1), "flag": True}, [torch.zeros(1), torch.ones(1)])
        {'x': tensor([1.]), 'flag': True}
    """
    if isinstance(structure, Leaf):
        return tensors[structure.index]
    return map_structure(structure, lambda item: restore(item, tensors))


def leaves_of(structure: Any) -> list[Leaf]:
    """All leaves, in order.

    Example:
        >>> leaves_of({"x": Leaf(1), "more": [None, Leaf(0)]})
        [Leaf(index=1), Leaf(index=0)]
    """
    return [item for item in leaves_and_numbers(structure) if isinstance(item, Leaf)]


def leaves_and_numbers(structure: Any) -> list[Any]:
    """All leaves, and all numbers, each of which may be a leaf of another call's structure; in order.

    Example:
        >>> leaves_and_numbers({"x": Leaf(0), "count": 3, "name": "x"})
        [Leaf(index=0), 3]
    """
    found: list[Any] = []

    def visit(item: Any) -> Any:
        if isinstance(item, (Leaf, int, float)):
            found.append(item)
            return item
        return map_structure(item, visit)

    visit(structure)
    return found


def _like(old: Any, items: dict[Any, Any]) -> Any:
    if type(old) in (dict, OrderedDict):
        return type(old)(items)
    try:  # a class of its own: a copy keeps what else it knows
        kind: Any = type(old)
        new = kind(**items) if is_record(old) else kind(items)
        return new if list(new) == list(items) else items
    except Exception:
        return items


def _record_like(old: Any, items: dict[str, Any]) -> Any:
    new = object.__new__(type(old))
    for name, item in items.items():
        object.__setattr__(new, name, item)
    return new
