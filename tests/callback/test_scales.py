"""Learned scales move by the schedule, whatever optimizer the module has."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lq.callback import QATCallback
from lq.config.qconfig import QConfig
from lq.config.schedule import QATSchedule
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core.lsq import LearnedScale
from tests.callback.conftest import Fit
from tests.tiny import Tiny

LEARNED = QConfig(weight=WeightSpec(learned_scale=True), activation=ActivationSpec(learned_scale=True))
STEPS = 6  # two epochs of three batches


class With(Tiny):
    """Tiny, with an optimizer of the test's choice."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def learning(**schedule: Any) -> QATCallback:
    return QATCallback(qconfig=LEARNED, schedule=QATSchedule(**schedule))


def factors(module: L.LightningModule) -> torch.Tensor:
    parts = [part for part in module.modules() if isinstance(part, LearnedScale)]
    assert len(parts) > 4
    return torch.cat([part.log_factor.detach().flatten() for part in parts])


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_moves_every_scale_by_the_same_share(fit: Fit, name: str) -> None:
    module = With(OPTIMIZERS[name])
    fit(module, learning(scale_lr=0.01, lr=None), max_epochs=2)
    moved = factors(module)
    steps = (moved / 0.01).round()
    torch.testing.assert_close(moved, 0.01 * steps)
    assert steps.abs().max() <= STEPS
    assert (steps != 0).float().mean() > 0.5


def test_it_falls_with_the_learning_rate(fit: Fit) -> None:
    module = With(OPTIMIZERS["sgd"])
    callback = learning(scale_lr=0.01, lr=0.5, lr_final=0.1)
    fit(module, callback, max_epochs=2)
    assert 0.02 < factors(module).abs().max() < 0.9 * STEPS * 0.01


def test_none_leaves_them_to_the_optimizer(fit: Fit) -> None:
    module = With(OPTIMIZERS["adam"])
    fit(module, learning(scale_lr=None, lr=None), max_epochs=2)
    assert 0 < factors(module).abs().max() < 1.1e-5 * STEPS


def test_each_optimizer_has_its_own(fit: Fit) -> None:
    class Manual(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            second.step()
            if batch_idx == 1:  # the first one makes the range
                first.step()
            self.zero_grad()

        def configure_optimizers(self) -> Any:
            scale, *scales = (p for name, p in self.named_parameters() if name.endswith("log_factor"))
            weights = [p for name, p in self.named_parameters() if not name.endswith("log_factor")]
            return [torch.optim.SGD([scale], lr=0.1), torch.optim.SGD([*weights, *scales], lr=0.1)]

    module = Manual()
    fit(module, learning(scale_lr=0.01, lr=None), max_epochs=1)
    first, *others = (p for name, p in module.named_parameters() if name.endswith("log_factor"))
    assert float(first.detach().abs().max()) == pytest.approx(0.01)
    assert max(float(p.detach().abs().max()) for p in others) == pytest.approx(0.03)
