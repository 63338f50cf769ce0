"""Post-training quantization: ranges from a few batches, no training; the baseline that QAT has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from itertools import islice
from typing import Any

import torch
from torch import fx

from lq.backends.prepare import set_phase, state_of
from lq.console import BatchCounter


def calibrate(
    prepared: fx.GraphModule,
    batches: Iterable[Any],
    call: Callable[[fx.GraphModule, Any], Any] | None = None,
    limit: int = 100,
) -> int:
    """Let the observers of a prepared module see batches, in evaluation mode; afterwards it is fake-quantized.

    Args:
        prepared: from :func:`lq.prepare`.
        batches: data, e.g. a DataLoader.
        call: how to run one batch, ``call(prepared, batch)``; by default the first element of ``(x, y)`` is the input.
        limit: batches to use; about 100 calibrate a model (Krishnamoorthi, arXiv:1806.08342).

    Returns:
        number of batches used.

    Raises:
        ValueError: if there was no batch.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> calibrate(prepared, [torch.randn(8, 4) for _ in range(3)])
        3
    """
    state = state_of(prepared)
    prepared.eval()
    state.train()
    set_phase(prepared, fake_quant=False, observer=True, freeze_bn=True)
    used = 0
    total = min(limit, len(batches)) if isinstance(batches, Sized) else limit
    with torch.no_grad(), BatchCounter("lq: calibrating", total) as counter:
        for batch in islice(batches, limit):
            (call or _call)(prepared, batch)
            used += 1
            counter.advance()
    prepared.eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    if not used:
        raise ValueError("calibrate() got no batch: the data loader is empty. Give at least one.")
    return used


def _call(prepared: fx.GraphModule, batch: Any) -> Any:
    return prepared(batch[0] if isinstance(batch, (tuple, list)) else batch)
