"""Learned scales have a learning rate of their own, whatever optimizer the module has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from lq.core.lsq import LearnedScale


def learned_scales(target: nn.Module) -> list[LearnedScale]:
    """Those of a prepared target.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.config.qconfig import QConfig
        >>> learned = prepare(nn.Sequential(nn.Linear(4, 2)), QConfig(weight={"learned_scale": True}))
        >>> len(learned_scales(learned)), len(learned_scales(prepare(nn.Sequential(nn.Linear(4, 2)))))
        (1, 0)
    """
    return [part for part in target.modules() if isinstance(part, LearnedScale)]


def step_scales(scales: Sequence[LearnedScale], optimizer: Optimizer, change: float | None) -> None:
    """Train those learned scales that an optimizer is about to train, in its place, behind a backward pass.

    An optimizer has one learning rate for weights and scales: with Adam, that of weights hardly moves a scale; with
    SGD, a single gradient may move it by half. The optimizer finds gradients of 0 here, so it has state for each scale,
    which sharded checkpoints need.

    Args:
        scales: of the target.
        optimizer: whose step comes next; a module may have several.
        change: relative change of every scale; ``None`` leaves them to the optimizer.

    Example:
        >>> import torch
        >>> learned = LearnedScale(torch.ones(()))
        >>> learned(1.0).backward()
        >>> step_scales([learned], torch.optim.SGD(learned.parameters(), lr=1.0), 0.001)
        >>> learned.log_factor.detach(), learned.log_factor.grad
        (tensor([-0.0010]), tensor([0.]))
    """
    if change is None or not scales:
        return
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for scale in scales:
        if id(scale.log_factor) in trained:
            scale.step(change)
