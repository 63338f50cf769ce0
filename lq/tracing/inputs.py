"""The arguments of a call by the names that the user gave them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lq.tracing.structure import is_record, tensors_of


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], defaults: bool = False
) -> dict[str, Any]:
    """The arguments of a call, in the order of the parameters of ``forward``.

    Args:
        module: that is called.
        args: positional arguments; those that ``*args`` takes are named by that and their position.
        kwargs: keyword arguments.
        defaults: add those that were not given.

    Raises:
        ValueError: if ``forward`` does not take them.

    Example:
        >>> list(named_arguments(nn.Bilinear(2, 3, 4), (0, 1), {}))
        ['input1', 'input2']
    """
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"The example inputs do not fit {type(module).__name__}.forward: {error}.") from None
    if defaults:
        bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": inner for i, inner in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def input_tensors(named: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Every tensor of a call's arguments once, and what it is called.

    Example:
        >>> x = torch.ones(1)
        >>> [name for name, _ in input_tensors({"pair": (x, {"key": torch.ones(2)}), "same": x})]
        ['pair_0', 'pair_1_key']
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in named.items():
        for path, leaf in _leaves(value, name):
            if isinstance(leaf, Tensor):
                found.setdefault(id(leaf), (path, leaf))
    return list(found.values())


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _leaves(inner, f"{path}_{key}")]
    if isinstance(value, (list, tuple)):
        return [pair for i, inner in enumerate(value) for pair in _leaves(inner, f"{path}_{i}")]
    if isinstance(value, Tensor):
        return [(path, value)]
    if is_record(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [pair for key, inner in parts for pair in _leaves(inner, f"{path}_{key}")]
    tensors = tensors_of(value)
    return [(path if len(tensors) == 1 else f"{path}_{i}", leaf) for i, leaf in enumerate(tensors)]


def describe_inputs(example: Any) -> Any:
    """Inputs of a call without their values: plain data, from which :func:`made_inputs` makes others like them.

    Args:
        example: tensors, plain constants, and tuples, lists and dicts of those.

    Returns:
        plain data; ``None`` if the inputs hold anything else.

    Example:
        >>> plain = describe_inputs(((torch.ones(2, 3), None), {"flag": True}))
        >>> made_inputs(plain)
        ((tensor([[0., 0., 0.],
                [0., 0., 0.]]), None), {'flag': True})
    """
    try:
        return _described(example)
    except TypeError:
        return None


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(inner) for inner in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": [[key, _described(inner)] for key, inner in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"constant": value}
    raise TypeError(type(value).__name__)


def made_inputs(plain: Any) -> Any:
    """Inputs as :func:`describe_inputs` described them, all zeros.

    Example:
        >>> made_inputs({"list": [{"tensor": [2], "dtype": "int64"}, {"constant": 3}]})
        [tensor([0, 0]), 3]
    """
    if "tensor" in plain:
        return torch.zeros(plain["tensor"], dtype=getattr(torch, plain["dtype"]))
    if "tuple" in plain:
        return tuple(made_inputs(inner) for inner in plain["tuple"])
    if "list" in plain:
        return [made_inputs(inner) for inner in plain["list"]]
    if "dict" in plain:
        return {key: made_inputs(inner) for key, inner in plain["dict"]}
    return plain["constant"]
