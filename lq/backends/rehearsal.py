"""Does an instrumented module still compute what it did? Code that works in place may not."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lq.core.kept import as_it_was
from lq.instrument.attach import instrument_of
from lq.instrument.record import Recording
from lq.tracing.closeness import are_close
from lq.tracing.structure import Inputs


def rehearse_sites(module: nn.Module, recording: Recording, example: Inputs) -> bool:
    """Run with all sites and nothing rounded: whether the module computes what it did.

    Args:
        module: instrumented.
        recording: of its call before that.
        example: inputs of that call.

    Raises:
        ValueError: if it calls other functions than before.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.record import record
        >>> net, example = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), ((torch.ones(1, 4),), {})
        >>> recording = record(net, *example)
        >>> rehearse_sites(prepare(net, example_args=example[0]), recording, example)
        True
    """
    instrument = instrument_of(module)
    assert instrument is not None
    instrument.ran.clear()
    instrument.rehearsing = True
    try:
        with as_it_was(module), torch.no_grad():
            module.eval()
            args, kwargs = copy.deepcopy(example)
            output = module(*args, **kwargs)
    finally:
        instrument.rehearsing = False
    missing = [call for i, call in instrument.planned.items() if i not in instrument.ran]
    if missing:
        raise ValueError(
            f"{type(module).__name__} calls other functions the second time: {missing[0]} did not run again. A module "
            "whose calls change at random in evaluation cannot be planned."
        )
    instrument.ran.clear()
    instrument.unplanned.clear()
    return are_close(recording.output, output)
