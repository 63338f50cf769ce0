"""What a model returns, and what an error says, in a line."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx

from lq.tracing.structure import Inputs


@torch.no_grad()
def output_of(prepared: fx.GraphModule, example: Inputs) -> Any:
    """The output of one call, whose inputs stay as they are."""
    args, kwargs = copy.deepcopy(example)  # a model may work in place
    return prepared(*args, **kwargs)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks and final full stop.

    Example:
        >>> one_line(ValueError("too  long."))
        'too long'
    """
    return " ".join(str(error).split()).rstrip(".")
