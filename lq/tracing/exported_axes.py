"""Dynamic axes of a graph that was just exported: are they dynamic, and does it compute the same for other sizes?"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from lq.tracing.axes import Axes, named_tensors, other_sizes
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
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # brings sympy

    placeholders = {id(tensor): node for tensor, node in zip(tensors_of(example), inputs, strict=True)}
    tensors, labels = named_tensors(target, example), dict[Any, str]()
    found: dict[str, dict[int, str]] = {}
    for name, dims in axes.items():
        shape = placeholders[id(tensors[name])].meta["val"].shape
        for dim, label in dims.items():
            if is_concrete_int(shape[dim]):
                raise ValueError(_constant(target, name, dim, int(shape[dim]), stacks))
            found.setdefault(name, {})[dim] = labels.setdefault(shape[dim].node.expr, label)
    return found


def check_other_sizes(target: nn.Module, example: Inputs, axes: Axes, module: Run, graph: Run) -> None:
    """Compare a module and its graph on inputs twice or half as large.

    Args:
        target: the module.
        example: inputs of the call that was exported.
        axes: which dimensions are dynamic.
        module: what the module computes of a list of tensors.
        graph: what the graph computes.

    Raises:
        ValueError: if the module takes neither, or they differ.
    """
    failure: Exception | None = None
    for call in other_sizes(target, example, axes):
        tensors = tensors_of(call)
        try:
            expected = module([tensor.clone() for tensor in tensors])
        except Exception as error:
            failure = failure or error
            continue
        wrong = next(filter(None, map(difference, expected, graph(tensors))), None)
        if wrong is not None:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(
                f"{type(target).__name__} has no graph for the sizes that dynamic_axes wants: for inputs of the shapes "
                f"{shapes} the graph differs {wrong} from what the module computes."
            )
        return
    assert failure is not None
    raise ValueError(
        f"dynamic_axes: {type(target).__name__} itself takes inputs neither twice nor half as large as the example: "
        f"{said(failure)}."
    ) from failure


def _constant(target: nn.Module, name: str, dim: int, size: int, stacks: Sequence[traceback.StackSummary]) -> str:
    line = next(filter(None, map(line_in, stacks)), "its code")
    return (
        f"{type(target).__name__} has no graph in which dimension {dim} of {name} is dynamic, as dynamic_axes wants "
        f"it: {line} makes it a constant, {size}. {name}.shape[{dim}] in the place of len(...), int(...) or a number "
        "leaves it open; a linear layer over it, or a parameter of that size, cannot."
    )
