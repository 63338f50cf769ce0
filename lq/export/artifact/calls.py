"""Calls of a model, as exporters and exported models take them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from lq.conversion.on_cpu import other_float_types
from lq.tracing.batch import FixedBatch, fixed_batch
from lq.tracing.images import images_of
from lq.tracing.samples import batch_size, one_sample
from lq.tracing.structure import Inputs, map_tensors


def fits_batch(call: Inputs, batch: FixedBatch | None) -> bool:
    """Whether a graph that takes one batch size alone takes that of a call.

    Example:
        >>> fits_batch(((torch.zeros(8, 3),), {}), FixedBatch(4)), fits_batch(((torch.zeros(8, 3),), {}), None)
        (False, True)
    """
    if batch is None:
        return True
    images = images_of(call) if batch.images else None
    return batch.size == (batch_size(call) if images is None else len(images))


def in_order(model: nn.Module, example: Inputs) -> Inputs:
    """The same call with its keywords in the order of the parameters and without gaps: the tracers confuse others.

    Example:
        >>> class Scale(nn.Module):
        ...     def forward(self, x, factor=2.0, offset=0.0):
        ...         return x * factor + offset
        >>> in_order(Scale(), ((), {"offset": 1.0, "x": torch.ones(1)}))
        ((), {'x': tensor([1.]), 'factor': 2.0, 'offset': 1.0})
    """
    args, kwargs = example
    parameters = inspect.signature(model.forward).parameters
    order = {name: position for position, name in enumerate(parameters)}
    last = max((order[name] for name in kwargs if name in order), default=0)
    skipped = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in kwargs and len(args) <= order[name] < last and parameter.default is not parameter.empty
    }
    given = {**skipped, **kwargs}
    return args, dict(sorted(given.items(), key=lambda item: order.get(item[0], len(order))))


def in_float32(model: nn.Module, example: Any) -> Any:
    """Tensors as the int8 model of ``model`` takes them: float32 in the place of other types of its parameters.

    Example:
        >>> in_float32(nn.Linear(4, 2).bfloat16(), [torch.ones(1, dtype=torch.bfloat16)])
        [tensor([1.])]
    """
    replaced = other_float_types(model)
    if not replaced:
        return example
    return map_tensors(example, lambda t: t.float() if t.dtype in replaced else t)


def smallest_call(model: nn.Module, example: Inputs) -> Inputs:
    """The example cut to a batch of one, or whole where the model's code has fixed its batch.

    Example:
        >>> example = ((torch.rand(8, 4),), {})
        >>> smallest_call(nn.Linear(4, 2), example)[0][0].shape
        torch.Size([1, 4])
        >>> smallest_call(nn.Unflatten(0, (4, 2)), example) is example  # it takes no batch of one
        True
    """
    if fixed_batch(model) is not None:
        return example
    sample = one_sample(example)
    try:
        with torch.no_grad():
            model(*copy.deepcopy(sample[0]), **copy.deepcopy(sample[1]))
    except Exception:
        return example
    return sample
