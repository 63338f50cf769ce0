"""Training and evaluation mode of the modules of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(*roots: nn.Module) -> Iterator[None]:
    """Within the block modules may change their mode; afterwards each has its own again.

    Users put single modules into evaluation mode, so ``root.train()`` would not do.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with modes_kept(net):
        ...     _ = net.eval()
        >>> [module.training for module in net]
        [False, True]
    """
    modes = [(module, module.training) for root in roots for module in root.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
