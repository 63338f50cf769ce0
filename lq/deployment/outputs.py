"""What a model returns, for an example and for calls of other sizes."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import fx

from lq.tracing.axes import asked_axes, other_sizes
from lq.tracing.structure import Inputs


@torch.no_grad()
def output_of(prepared: fx.GraphModule, example: Inputs) -> Any:
    """The output of one call, whose inputs stay as they are."""
    args, kwargs = copy.deepcopy(example)  # a model may work in place
    return prepared(*args, **kwargs)


def calls_of_other_sizes(prepared: fx.GraphModule, example: Inputs) -> list[tuple[Inputs, Any]]:
    """A call that differs from an example along the dynamic axes, with what a model returns of it; none without such.

    Args:
        prepared: in evaluation mode.
        example: inputs of one call.
    """
    axes = asked_axes(prepared)
    for call in other_sizes(prepared, example, axes) if axes else ():
        try:
            return [(call, output_of(prepared, call))]
        except Exception:
            logging.getLogger(__name__).debug("not of this size", exc_info=True)
    return []
