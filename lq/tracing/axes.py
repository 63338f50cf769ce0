"""Dimensions of the inputs whose sizes a captured model leaves open: which, their names, and calls of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.checks import shown
from lq.compat.torch_private import tree_leaves
from lq.tracing.batch import open_sizes
from lq.tracing.call_signature import arguments_of
from lq.tracing.images import image_list
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, in_plain_containers, map_tensors

DynamicAxes = Mapping[str, Sequence[int] | Mapping[int, str]]  # as users write them
Axes = Mapping[str, Mapping[int, str]]  # name of an input -> dimension -> name of its size

BATCH, ANY = "batch", "any"
_KEY = "lq_open_axes"  # in the ``meta`` of a graph
_FORM = "dynamic_axes={'x': [2, 3]}, or with names for the sizes {'x': {2: 'height', 3: 'width'}}"


def named_after(parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in the order of the parameters; those of ``*args`` by their position.

    Example:
        >>> named_after(("x", "mask"), [1], {"mask": 2})
        {'x': 1, 'mask': 2}
    """
    named = {parameters[i] if i < len(parameters) else f"argument_{i}": value for i, value in enumerate(args)}
    named |= kwargs
    order = {name: position for position, name in enumerate(parameters)}
    return dict(sorted(named.items(), key=lambda item: order.get(item[0], len(order))))


def named_tensors(model: nn.Module, example: Inputs) -> dict[str, Tensor]:
    """The tensors of a call, by the name of the argument, numbered where that, or ``*args``, holds several.

    Example:
        >>> list(named_tensors(nn.Identity(), ((torch.zeros(1),), {})))
        ['input']
        >>> list(named_tensors(nn.Identity(), (([torch.zeros(1), torch.ones(1)],), {})))
        ['input_0', 'input_1']
    """
    found: dict[str, Tensor] = {}
    for name, value, _ in arguments_of(model, *example):
        tensors = [leaf for leaf in tree_leaves(in_plain_containers(value)) if isinstance(leaf, Tensor)]
        found |= {name if len(tensors) == 1 else f"{name}_{i}": tensor for i, tensor in enumerate(tensors)}
    return found


def checked_axes(given: Any) -> Axes:
    """The dimensions that a user wants to be dynamic, each with a name for its size.

    Args:
        given: for each input, a list of dimensions or a mapping from these to names, as ``torch.onnx.export`` has it;
            ``None`` is nothing.

    Returns:
        the same as names, "" where none was given.

    Raises:
        TypeError: for anything else.
        ValueError: if a name is not one, or stands for the batch.

    Example:
        >>> checked_axes({"x": [2, 3], "mask": {1: "length"}})
        {'x': {2: '', 3: ''}, 'mask': {1: 'length'}}
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"dynamic_axes={shown(given)} must map names of inputs to dimensions: {_FORM}.")
    return {name: dict(_checked(name, dims)) for name, dims in given.items() if dims}


def _checked(name: str, dims: Any) -> Iterator[tuple[int, str]]:
    if isinstance(dims, str) or not isinstance(dims, (Mapping, Sequence)):
        raise TypeError(f"dynamic_axes: {name}={shown(dims)} must be a list of dimensions: {_FORM}.")
    for dim in dims:
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"dynamic_axes: {shown(dim)} of {name} is no dimension; write {_FORM}.")
        label = dims[dim] if isinstance(dims, Mapping) else ""
        if isinstance(dims, Mapping) and not (isinstance(label, str) and label.isidentifier()):
            raise ValueError(f"dynamic_axes: {shown(label)} for dimension {dim} of {name} is no name; write {_FORM}.")
        if label in (BATCH, ANY) and dim != 0:
            raise ValueError(f"dynamic_axes: {label!r} for dimension {dim} of {name} is a word of lq; take another.")
        yield dim, label


def axes_of(model: nn.Module, example: Inputs, wanted: Axes) -> Axes:
    """The wanted dimensions, counted from the front, each with a name, without the batch, which is open by itself.

    Args:
        model: what is called.
        example: inputs of one call.
        wanted: of :func:`checked_axes`.

    Raises:
        ValueError: if there is no such input or dimension, if its size in the example is 1, for which PyTorch may
            compute something else than for others, or if the input is a list of images.

    Example:
        >>> axes_of(nn.Identity(), ((torch.zeros(8, 3, 4, 4),), {}), {"input": {0: "n", -1: "width"}})
        {'input': {3: 'width'}}
    """
    if wanted and image_list(example) is not None:
        raise ValueError(
            f"dynamic_axes: {type(model).__name__} takes a list of images, and its graph holds their size. Leave "
            "dynamic_axes out, and resize the images to one size."
        )
    tensors, shared = named_tensors(model, example), batch_size(example) is not None
    found: dict[str, dict[int, str]] = {}
    for name, dims in wanted.items():
        if name not in tensors:
            inputs = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors.items())
            raise ValueError(f"dynamic_axes names {name!r}, but the inputs of {type(model).__name__} are {inputs}.")
        shape = tuple(tensors[name].shape)
        for dim, label in dims.items():
            if not -len(shape) <= dim < len(shape):
                raise ValueError(f"dynamic_axes names dimension {dim} of {name}, whose shape is {shape}.")
            from_front = dim % len(shape)
            if from_front == 0 and shared:
                continue
            if shape[dim] <= 1:
                raise ValueError(
                    f"dynamic_axes names dimension {dim} of {name}, which has the size {shape[dim]} in the example. "
                    "PyTorch takes such a size for a constant; give a larger example."
                )
            found.setdefault(name, {})[from_front] = label or f"{name}_{from_front}"
    return found


def set_open_axes(graph: fx.GraphModule, axes: Axes) -> None:
    """Note what :func:`open_axes` returns beside the batch.

    Example:
        >>> graph = fx.symbolic_trace(nn.ReLU())
        >>> set_open_axes(graph, {"input": {2: "height"}})
        >>> asked_axes(graph)
        {'input': {2: 'height'}}
    """
    graph.meta[_KEY] = axes


def asked_axes(model: nn.Module) -> Axes:
    """What a captured graph, or what was made of it, leaves open beside the batch because its user asked for it.

    Example:
        >>> asked_axes(nn.Identity())
        {}
    """
    axes: Axes = model.meta.get(_KEY, {}) if isinstance(model, fx.GraphModule) else {}
    return axes


def open_axes(model: nn.Module, example: Inputs, asked: bool = True) -> list[Mapping[int, str]]:
    """For each tensor of a call, the dimensions that other calls of a model may have otherwise, and their names.

    Args:
        model: a captured graph, or what was made of it; of another module that is the batch.
        example: inputs of one call.
        asked: count in what the user has asked for; else it is the batch, or the first dimensions.

    Returns:
        a mapping for each tensor, in the order of the parameters. The first dimension is the "batch" where all tensors
        share it, and else "any", which is independent of the others.

    Example:
        >>> open_axes(nn.Identity(), ((torch.zeros(8, 3),), {}))
        [{0: 'batch'}]
    """
    sizes, label = open_sizes(model, example), ANY if batch_size(example) is None else BATCH
    axes = asked_axes(model) if asked else {}
    return [
        {**({0: label} if tensor.dim() and tensor.shape[0] in sizes else {}), **axes.get(name, {})}
        for name, tensor in named_tensors(model, example).items()
    ]


def other_sizes(model: nn.Module, example: Inputs, axes: Axes) -> Iterator[Inputs]:
    """The same call with other sizes of some dimensions: twice as large, then half as large.

    Args:
        model: what is called.
        example: inputs of one call.
        axes: which dimensions.

    Example:
        >>> calls = other_sizes(nn.Identity(), ((torch.zeros(1, 8),), {}), {"input": {1: "length"}})
        >>> [args[0].shape for args, _ in calls]
        [torch.Size([1, 16]), torch.Size([1, 4])]
    """
    return (_resized(model, example, axes, resized) for resized in (_doubled, _halved))


def odd_sizes(model: nn.Module, example: Inputs, axes: Axes) -> Inputs:
    """The same call with odd sizes of some dimensions, which leave a remainder where strides and windows halve them.

    Args:
        model: what is called.
        example: inputs of one call.
        axes: which dimensions.

    Example:
        >>> args, _ = odd_sizes(nn.Identity(), ((torch.zeros(1, 8, 2),), {}), {"input": {1: "length", 2: "width"}})
        >>> args[0].shape
        torch.Size([1, 7, 3])
    """
    return _resized(model, example, axes, _odd)


def _resized(model: nn.Module, example: Inputs, axes: Axes, resized: Callable[[Tensor, int], Tensor]) -> Inputs:
    tensors = named_tensors(model, example).items()
    dims = {id(tensor): axes.get(name, {}) for name, tensor in tensors}
    args, kwargs = map_tensors(example, lambda tensor: reduce(resized, dims.get(id(tensor), {}), tensor))
    return args, kwargs


def _doubled(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat([tensor, tensor], dim)


def _halved(tensor: Tensor, dim: int) -> Tensor:
    return tensor.narrow(dim, 0, max(2, tensor.shape[dim] // 2))


def _odd(tensor: Tensor, dim: int) -> Tensor:
    """The next smaller one, as that costs least; a size of 1 may be broadcast."""
    size = tensor.shape[dim]
    smaller = size - 1 - size % 2
    return tensor.narrow(dim, 0, smaller) if smaller > 1 else _doubled(tensor, dim).narrow(dim, 0, 2 * size - 1)
