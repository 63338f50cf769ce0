"""Optimizer and learning-rate schedule of the recipes' models, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

Name = Literal["sgd", "adamw"]
Schedule = Literal["constant", "onecycle"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer trains a model, and how its learning rate moves.

    Args:
        name: "sgd" (Nesterov momentum) or "adamw".
        lr: initial learning rate; the peak one under "onecycle".
        weight_decay: applied to weights only, never to biases and normalisation parameters.
        momentum: of "sgd"; "adamw" keeps its own.
        schedule: "constant", or "onecycle" (warm-up, then cosine down to nothing) over the whole fit.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> OptimizerConfig(lr=0.1).lr
        0.1
        >>> OptimizerConfig(name="adam")
        Traceback (most recent call last):
            ...
        ValueError: optimizer name 'adam' is not one of 'sgd', 'adamw'.
    """

    name: Name = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("name", self.name, get_args(Name)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in allowed:
                raise ValueError(f"optimizer {what} {value!r} is not one of {str(allowed)[1:-1]}.")
        if not self.lr > 0:
            raise ValueError(f"optimizer lr must be above 0, got {self.lr}.")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer weight_decay must be 0 or more, got {self.weight_decay}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer momentum must be in [0, 1), got {self.momentum}.")


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer, with weight decay on tensors of two or more dimensions only.

    Args:
        config: what to build.
        parameters: the parameters to train; frozen ones are left out.

    Returns:
        An optimizer with two parameter groups.

    Example:
        >>> optimizer = build_optimizer(OptimizerConfig(), nn.Linear(2, 3).parameters())
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0005, 0.0]
    """
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def build_scheduler(config: OptimizerConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler | None:
    """Build the schedule to be stepped after every batch, or None for a constant learning rate.

    Args:
        config: what to build.
        optimizer: the optimizer whose learning rate moves.
        total_steps: optimizer steps in the whole fit.

    Returns:
        A scheduler, or None.

    Example:
        >>> optimizer = build_optimizer(OptimizerConfig(), nn.Linear(2, 3).parameters())
        >>> build_scheduler(OptimizerConfig(schedule="constant"), optimizer, total_steps=10) is None
        True
    """
    if config.schedule == "constant":
        return None
    return OneCycleLR(optimizer, max_lr=config.lr, total_steps=total_steps)
