"""What a model returns, for an example and for calls of other sizes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from lq.tracing.axes import asked_axes, odd_sizes, other_sizes
from lq.tracing.batch import fixed_batch
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs, map_tensors


@torch.no_grad()
def output_of(prepared: fx.GraphModule, example: Inputs) -> Any:
    """The output of one call, whose inputs stay as they are.

    Example:
        >>> graph, x = fx.symbolic_trace(nn.ReLU(inplace=True)), torch.tensor([-1.0, 2.0])
        >>> output_of(graph, ((x,), {})), x
        (tensor([0., 2.]), tensor([-1.,  2.]))
    """
    args, kwargs = copy.deepcopy(example)  # a model may work in place
    return prepared(*args, **kwargs)


def calls_of_other_sizes(prepared: fx.GraphModule, example: Inputs) -> list[tuple[Inputs, Any]]:
    """Calls that differ from an example along the dynamic axes, with what a model returns of them; none without such.

    Args:
        prepared: in evaluation mode.
        example: inputs of one call.

    Returns:
        one of about the same sizes, which are odd, and one that is twice or half as large, as far as the model takes
        them.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> x = torch.rand(2, 1, 8, 8)
        >>> prepared = prepare(nn.Sequential(nn.Conv2d(1, 2, 3)), example_args=(x,))
        >>> graph = as_graph(prepared, ((x,), {}), axes={"input": {2: "height", 3: "width"}})
        >>> [(tuple(args[0].shape), tuple(out.shape)) for (args, _), out in calls_of_other_sizes(graph, ((x,), {}))]
        [((2, 1, 7, 7), (2, 2, 5, 5)), ((2, 1, 16, 16), (2, 2, 14, 14))]
    """
    axes = asked_axes(prepared)
    if not axes:
        return []
    others = (_taken(prepared, call) for call in other_sizes(prepared, example, axes))
    return [*_taken(prepared, odd_sizes(prepared, example, axes)), *next(filter(None, others), [])]


@torch.no_grad()
def _taken(prepared: fx.GraphModule, call: Inputs) -> list[tuple[Inputs, Any]]:
    """A call and its output, or nothing if the model does not take its sizes."""
    args, kwargs = copy.deepcopy(call)
    try:
        # The ``__call__`` of a graph prints a traceback of each error on stderr, also of one that is caught.
        return [(call, nn.Module.__call__(prepared, *args, **kwargs))]
    except Exception:
        logging.getLogger(__name__).debug("not of this size", exc_info=True)
    return []


def larger_call(prepared: fx.GraphModule, calls: Sequence[Inputs]) -> tuple[Inputs, Any] | None:
    """A call with more samples than others, which have one size, and what a model returns of it.

    Args:
        prepared: in evaluation mode.
        calls: inputs of each call.

    Returns:
        ``None`` if the calls have several sizes, or the model takes one batch size alone.

    Example:
        >>> graph, x = fx.symbolic_trace(nn.Linear(4, 2)), torch.rand(8, 4)
        >>> (args, _), out = larger_call(graph, [((x,), {})])
        >>> args[0].shape, out.shape
        (torch.Size([17, 4]), torch.Size([17, 2]))
        >>> larger_call(graph, [((x,), {}), ((x[:3],), {})]) is None
        True
    """
    sizes = {batch_size(call) for call in calls}
    if len(sizes) != 1 or sizes & {None, 0} or fixed_batch(prepared) is not None:
        return None
    args, kwargs = map_tensors(calls[0], lambda t: torch.cat([t, t.flip(0), t[:1]]) if t.dim() else t)
    return next(iter(_taken(prepared, (args, kwargs))), None)
