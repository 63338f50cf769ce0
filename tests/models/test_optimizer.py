import pytest
import torch
from torch import nn

from lq.models.optimizer import OptimizerConfig, build_optimizer, build_scheduler


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_decay_is_on_weights_only_and_frozen_parameters_stay_out(name, kind):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    net[2].weight.requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.2, weight_decay=0.3), net.parameters())
    assert type(optimizer) is kind
    decayed, others = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [net[0].weight.shape]
    assert len(others["params"]) == 4
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}


def test_sgd_without_momentum_is_plain():
    optimizer = build_optimizer(OptimizerConfig(momentum=0.0), nn.Linear(2, 2).parameters())
    assert not optimizer.param_groups[0]["nesterov"]


def test_onecycle_peaks_at_lr_and_ends_near_zero():
    config = OptimizerConfig(lr=0.5, schedule="onecycle")
    optimizer = build_optimizer(config, nn.Linear(2, 2).parameters())
    scheduler = build_scheduler(config, optimizer, total_steps=20)
    rates = []
    for _ in range(19):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adam"}, "optimizer name 'adam' is not one of 'sgd', 'adamw'"),
        ({"schedule": "linear"}, "optimizer schedule 'linear' is not one of 'constant', 'onecycle'"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\)"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**arguments)
