"""Dynamic axes of a graph that was just exported: are they dynamic, and does it compute the same for other sizes?"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from lq.messages import some_of
from lq.tracing.axes import Axes, named_tensors, odd_sizes, other_sizes
from lq.tracing.closeness import difference
from lq.tracing.no_graph import line_in, said
from lq.tracing.structure import Inputs, tensors_of

Run = Callable[[list[Tensor]], Sequence[Tensor]]


def named_open_axes(
    target: nn.Module,
    example: Inputs,
    axes: Axes,
    inputs: Sequence[fx.Node],
    stacks: Sequence[traceback.StackSummary],
) -> Axes:
    """The dimensions with the names of their sizes; those that have to be of one size get the name of the first.

    Args:
        target: the module.
        example: inputs of the call that was exported.
        axes: which dimensions were to be dynamic.
        inputs: placeholders of the graph, one for each tensor of the example.
        stacks: where sizes became constants.

    Raises:
        ValueError: if the graph holds one of them as a number, naming the line.

    Example:
        >>> import torch
        >>> x, y = torch.ones(2, 4), torch.ones(2, 4)
        >>> shapes = [{1: torch.export.Dim.AUTO}] * 2
        >>> class Sum(nn.Module):
        ...     def forward(self, x, y):
        ...         return x + y
        >>> graph = torch.export.export(Sum(), (x, y), dynamic_shapes=shapes, strict=False).graph
        >>> inputs = graph.find_nodes(op="placeholder")
        >>> named_open_axes(Sum(), ((x, y), {}), {"x": {1: "length"}, "y": {1: "other"}}, inputs, [])
        {'x': {1: 'length'}, 'y': {1: 'length'}}
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    placeholders = {id(tensor): node for tensor, node in zip(tensors_of(example), inputs, strict=True)}
    tensors, labels = named_tensors(target, example), dict[Any, str]()
    found: dict[str, dict[int, str]] = {}
    for name, dims in axes.items():
        shape = placeholders[id(tensors[name])].meta["val"].shape
        for dim, label in dims.items():
            if is_concrete_int(shape[dim]):
                also = _of_the_same_size(tensors, axes, int(shape[dim]))
                raise ValueError(_constant(target, name, dim, int(shape[dim]), stacks) + also)
            found.setdefault(name, {})[dim] = labels.setdefault(shape[dim].node.expr, label)
    return found


def check_other_sizes(target: nn.Module, example: Inputs, axes: Axes, module: Run, graph: Run) -> None:
    """Compare a module and its graph on inputs of odd sizes, if both take them, and on those twice or half as large.

    Args:
        target: the module.
        example: inputs of the call that was exported.
        axes: which dimensions are dynamic.
        module: what the module computes of a list of tensors, which it leaves as they are.
        graph: what the graph computes.

    Raises:
        ValueError: if the module takes none twice or half as large, or they differ.

    Example:
        >>> import torch
        >>> example = (torch.ones(1, 4),), {}
        >>> mean = lambda tensors: [tensors[0].mean()]
        >>> with_constant = lambda tensors: [tensors[0].sum() / 4]
        >>> check_other_sizes(nn.Identity(), example, {"input": {1: "length"}}, mean, with_constant)
        Traceback (most recent call last):
        ValueError: ... for inputs of the shapes (1, 3) the graph differs by 0.25 (allowed 1e-05) from ...
    """
    _check_odd_sizes(target, example, axes, module, graph)
    failure: Exception | None = None
    for call in other_sizes(target, example, axes):
        tensors = tensors_of(call)
        try:
            expected = module(tensors)
        except Exception as error:
            failure = failure or error
            continue
        _check_same(target, tensors, expected, graph(tensors))
        return
    assert failure is not None
    raise ValueError(
        f"dynamic_axes: {type(target).__name__} itself takes inputs neither twice nor half as large as the example: "
        f"{said(failure)}."
    ) from failure


def _check_odd_sizes(target: nn.Module, example: Inputs, axes: Axes, module: Run, graph: Run) -> None:
    tensors = tensors_of(odd_sizes(target, example, axes))
    try:
        expected, got = module(tensors), graph(tensors)
    except Exception:
        logging.getLogger(__name__).debug("not of odd sizes", exc_info=True)
    else:
        _check_same(target, tensors, expected, got)


def _check_same(
    target: nn.Module, tensors: Sequence[Tensor], expected: Sequence[Tensor], got: Sequence[Tensor]
) -> None:
    wrong = next(filter(None, map(difference, expected, got)), None)
    if len(expected) != len(got):
        wrong = f"in the number of its results, {len(got)} and {len(expected)},"
    if wrong is not None:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"{type(target).__name__} has no graph for the sizes that dynamic_axes wants: for inputs of the shapes "
            f"{shapes} the graph differs {wrong} from what the module computes."
        )


def _constant(target: nn.Module, name: str, dim: int, size: int, stacks: Sequence[traceback.StackSummary]) -> str:
    line = next(filter(None, map(line_in, stacks)), "its code")
    return (
        f"{type(target).__name__} has no graph in which dimension {dim} of {name} is dynamic, as dynamic_axes wants "
        f"it: {line} makes it a constant, {size}. {name}.shape[{dim}] in the place of len(...), int(...) or a number "
        "leaves it open; a linear layer over it, or a parameter of that size, cannot."
    )


def _of_the_same_size(tensors: Mapping[str, Tensor], axes: Axes, size: int) -> str:
    """What to write if other inputs, which may have to be as long, are not named: a mask beside tokens."""
    found = {
        name: [dim for dim in range(1, tensor.dim()) if tensor.shape[dim] == size]
        for name, tensor in tensors.items()
        if name not in axes
    }
    others = {name: dims for name, dims in found.items() if dims}
    if not others:
        return ""
    together = {name: list(dims) for name, dims in axes.items()} | others
    has = "has" if len(others) == 1 else "have"
    return f" {some_of(others)} {has} this size, too; if they change together, write dynamic_axes={together}."
