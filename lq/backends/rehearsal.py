"""Does an instrumented module still compute what it did? Code that works in place may not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lq.backends.base import Inputs
from lq.core.modes import modes_kept
from lq.instrument.attach import instrument_of
from lq.instrument.record import Recording, as_it_was
from lq.tracing.structure import Flattener

_TOLERANCE = 1e-5


def rehearse_sites(module: nn.Module, recording: Recording, example: Inputs) -> bool:
    """Run with all sites and nothing rounded: whether the module computes what it did.

    Args:
        module: instrumented.
        recording: of its call before that.
        example: inputs of that call.

    Raises:
        ValueError: if it calls other functions than before.
    """
    instrument = instrument_of(module)
    assert instrument is not None
    instrument.ran.clear()
    instrument.rehearsing = True
    try:
        with as_it_was(module), modes_kept(module), torch.no_grad():
            module.eval()
            args, kwargs = copy.deepcopy(example)
            output = module(*args, **kwargs)
    finally:
        instrument.rehearsing = False
    missing = [call for i, call in enumerate(instrument.calls) if i not in instrument.ran and not _counts(call)]
    if missing:
        raise ValueError(
            f"{type(module).__name__} calls other functions the second time: {missing[0]} did not run again. A module "
            "whose calls change at random in evaluation cannot be planned."
        )
    instrument.ran.clear()
    instrument.unplanned.clear()
    return _same(recording.output, output)


def _counts(call: Any) -> bool:
    """Whether it is the call by which a BatchNorm counts batches, which it does in training only."""
    return bool(call.operation == "add")


def _same(expected: Any, got: Any) -> bool:
    before, after = (_tensors(output) for output in (expected, got))
    return len(before) == len(after) and all(map(_close, before, after))


def _tensors(output: Any) -> list[Tensor]:
    flattener = Flattener()
    flattener.take(output)
    return [tensor for tensor in flattener.tensors if isinstance(tensor, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or not a.numel():
        return True
    limit = _TOLERANCE * max(1.0, float(a.abs().max()))
    return bool(torch.isnan(a).any()) or float((a.float() - b.float()).abs().max()) <= limit
