"""What the outputs of a file are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lq.compat.torch_private import keystr, tree_flatten_with_path
from lq.tracing.structure import Inputs


def output_names(model: nn.Module, example: Inputs) -> list[str]:
    """Names of the output tensors: keys of a dict, positions of a tuple.

    Args:
        model: in evaluation mode.
        example: inputs of one call.

    Example:
        >>> output_names(nn.Linear(2, 2), ((torch.zeros(1, 2),), {}))
        ['output']
    """
    args, kwargs = example
    with torch.no_grad():
        leaves, _ = tree_flatten_with_path(model(*args, **kwargs))
    paths = [path for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [_name(path) for path in paths]


def _name(path: tuple[Any, ...]) -> str:
    """``output``, ``logits`` or ``features_0`` for the way to a leaf."""
    words = "".join(letter if letter.isalnum() else " " for letter in keystr(path)).split()
    return "_".join(words if words and not words[0].isdigit() else ["output", *words])
