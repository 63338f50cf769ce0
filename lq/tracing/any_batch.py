"""Batches of any size for what is right for one size alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lq.tracing.batch import FixedBatch, fixed_batch
from lq.tracing.images import run_in_parts
from lq.tracing.samples import run_filled_up
from lq.tracing.structure import Inputs


def run_any_batch(run: Callable[..., Any], inputs: Inputs, batch: FixedBatch | None) -> Any:
    """Call a model with a batch of another size than its own, where that is possible.

    Args:
        run: the model.
        inputs: of one call.
        batch: the only size that it is right for; ``None`` if it takes any.

    Returns:
        what one call would return: images are run in parts, and independent samples are filled up. Other batches reach
        the model as they are.

    Example:
        >>> import torch
        >>> run_any_batch(lambda x: x.sum(1), ((torch.ones(3, 2),), {}), FixedBatch(2, independent=True))
        tensor([2., 2., 2.])
    """
    if batch is not None and batch.images:
        return run_in_parts(run, inputs, batch.size)
    if batch is not None and batch.independent:
        return run_filled_up(run, inputs, batch.size)
    return run(*inputs[0], **inputs[1])


def of_any_batch(model: Callable[..., Any]) -> Callable[..., Any]:
    """A captured graph, or what was made of it, as a function that takes batches of any size; others as they are.

    Example:
        >>> import torch
        >>> of_any_batch(nn.Flatten())(torch.zeros(2, 3, 3)).shape
        torch.Size([2, 9])
    """
    batch = fixed_batch(model) if isinstance(model, nn.Module) else None
    return model if batch is None else lambda *args, **kwargs: run_any_batch(model, (args, kwargs), batch)
