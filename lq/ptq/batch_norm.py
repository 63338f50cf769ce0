"""BatchNorm statistics that belong to rounded weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lq.backends.prepare import set_phase
from lq.compat.torch_private import BatchNorm
from lq.console import BatchCounter
from lq.core.modules import QATLayer
from lq.ptq.batches import RunBatch, run_batch
from lq.ptq.layers import calls_layers


@torch.no_grad()
def reestimate_batch_norm(prepared: nn.Module, batches: Iterable[Any], call: RunBatch | None = None) -> int:
    """Measure the mean and variance of every BatchNorm anew, behind quantized weights; do it before ``calibrate``.

    Each statistic becomes the plain average over the batches.

    Args:
        prepared: from :func:`lq.prepare`; its BatchNorms, which it shares with the float model, are changed.
        batches: data, to be gone through once; batches of some size, or the variances are poor.
        call: as in :func:`lq.calibrate`.

    Returns:
        number of BatchNorms.

    Source:
        Sun et al., "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks" (NeurIPS 2019).

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)))
        >>> reestimate_batch_norm(prepared, [torch.randn(32, 4) + 5])
        1
    """
    norms = [m for m in prepared.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    prepared.eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for part in prepared.modules():
        if isinstance(part, (BatchNorm, QATLayer)) or calls_layers(part):
            part.train()
    try:
        with BatchCounter("lq: BatchNorm statistics") as counter:
            for batch in batches:
                (call or run_batch)(prepared, batch)
                counter.advance()
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:  # it never ran: what it knew is better than nothing
                norm.load_state_dict(state)
        prepared.eval()
    return len(norms)
