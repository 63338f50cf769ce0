from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, LinearLR, OneCycleLR

from lq.callback.learning_rate import InitialLearningRates


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.2}], lr=0.1)


def rates(made: torch.optim.Optimizer, scheduler: object) -> list[float]:
    InitialLearningRates([made], [scheduler]).apply([made], 0.01)
    return [group["lr"] for group in made.param_groups]


def test_a_share_of_the_peak_of_one_cycle() -> None:
    made = optimizer()
    assert rates(made, OneCycleLR(made, max_lr=[0.4, 0.8], total_steps=10)) == pytest.approx([0.004, 0.008])


def test_a_share_of_the_peak_of_cycles() -> None:
    made = optimizer()
    assert rates(made, CyclicLR(made, base_lr=0.001, max_lr=0.4)) == pytest.approx([0.004, 0.004])


def test_a_warm_up_ends_at_the_rate_that_was_given() -> None:
    made = optimizer()
    assert rates(made, LinearLR(made, start_factor=0.1)) == pytest.approx([0.001, 0.002])


def test_a_group_that_comes_on_the_way_has_the_rate_of_now_and_falls_with_the_others() -> None:
    made = optimizer()
    known = InitialLearningRates([made])
    known.apply([made], 0.01)
    made.add_param_group({"params": [torch.zeros(1)], "lr": made.param_groups[0]["lr"] / 10})
    for scale, wanted in ((0.01, 1e-4), (0.005, 5e-5)):
        known.apply([made], scale)
        assert [group["lr"] for group in made.param_groups] == pytest.approx([10 * wanted, 20 * wanted, wanted])


def test_rates_that_are_tensors_stay_tensors() -> None:
    rate = torch.tensor(0.5)
    made = torch.optim.Adam([torch.zeros(1)], lr=rate)
    InitialLearningRates([made]).apply([made], 0.1)
    assert made.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)


def test_a_group_that_came_before_qat_has_its_share() -> None:
    made = optimizer()
    known = InitialLearningRates([made])
    made.add_param_group({"params": [torch.zeros(1)], "lr": 0.02})
    known.apply([made], None)
    assert made.param_groups[-1]["lr"] == 0.02
    known.apply([made], 0.01)
    assert made.param_groups[-1]["lr"] == pytest.approx(0.0002)
