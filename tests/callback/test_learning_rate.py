from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, LinearLR, OneCycleLR

from lq.callback.learning_rate import InitialLearningRates
from tests.callback.conftest import Fit
from tests.tiny import Tiny, qat


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


def test_an_optimizer_in_the_place_of_another_has_its_share_of_its_own_rates() -> None:
    first, second = optimizer(), torch.optim.SGD([torch.zeros(1)], lr=0.5)
    known = InitialLearningRates([first])
    known.apply([first], 0.01)
    for scale in (0.01, 0.005):
        known.apply([second], scale)
        assert [group["lr"] for group in second.param_groups] == pytest.approx([0.5 * scale])
    known.apply([second, optimizer()], 0.1)


def test_an_optimizer_may_lose_a_group() -> None:
    made = optimizer()
    known = InitialLearningRates([made])
    del made.param_groups[1:]
    known.apply([made], 0.01)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.001])


def test_optimizers_may_be_made_anew_in_the_middle_of_a_fit(fit: Fit) -> None:
    class Again(Tiny):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.lr = 0.5
                self.trainer.strategy.setup_optimizers(self.trainer)

        def configure_optimizers(self) -> Any:
            parameters = list(self.parameters())
            groups = [{"params": parameters[:1]}, {"params": parameters[1:]}] if self.lr < 0.5 else parameters
            return torch.optim.SGD(groups, lr=self.lr)

    trainer = fit(Again(), qat(lr=0.1, lr_final=1.0), max_epochs=2)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.05])
