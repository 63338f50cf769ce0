"""Models whose outputs depend on chance: nothing can be compared with them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lq.tracing.closeness import are_close
from lq.tracing.structure import Inputs

CHANCE = (
    "two calls in evaluation with the same inputs give different outputs, as where forward draws random numbers, so no "
    "file can be compared with it. Draw them only if self.training, or let forward take them as an input"
)


@torch.no_grad()
def depends_on_chance(model: nn.Module, example: Inputs) -> bool:
    """Whether two calls with the same inputs give different outputs; random generators of the CPU stay as they were.

    Args:
        model: in evaluation mode.
        example: inputs of one call.

    Example:
        >>> example = ((torch.ones(99),), {})
        >>> depends_on_chance(nn.Dropout().eval(), example), depends_on_chance(nn.Dropout(), example)
        (False, True)
    """
    outputs = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            args, kwargs = copy.deepcopy(example)
            outputs.append(model(*args, **kwargs))
    return not are_close(*outputs)
