from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lq.backends.prepare import prepare, state_of
from lq.callback.course import Course
from lq.config.schedule import QATSchedule
from tests.callback.conftest import Fit
from tests.tiny import Tiny


class Follower(L.Callback):
    """Follows a course through a fit, and notes what holds in each step."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.steps: list[tuple[int, bool, float]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.course.note_rates(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.course.begin(trainer, pl_module.model, is_of_float=False)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        phase = self.course.enter(trainer, pl_module.model, batch_idx)
        frozen = state_of(pl_module.model).freeze_bn
        self.steps.append((phase.index, frozen, trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.course.end_step(pl_module.model)


def test_a_fit_goes_through_the_phases_of_its_schedule(fit: Fit) -> None:
    schedule = QATSchedule(start=1, observer_off=2, freeze_bn=3, lr=0.5, lr_final=1.0)
    follower = Follower(Course(schedule))
    module = Tiny(lr=0.1)
    prepare(module.model, example_args=(torch.rand(2, 1, 6, 6),))
    fit(module, follower, max_epochs=4)
    phases, frozen, rates = zip(*follower.steps, strict=True)
    assert phases == (0, 0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4)  # three steps an epoch
    assert frozen == (False,) * 9 + (True,) * 3
    assert rates == pytest.approx([0.1] * 3 + [0.05] * 9)
    assert follower.course.figures == {"qat/phase": 4.0, "qat/lr_scale": pytest.approx(0.5)}


def test_a_short_run_tries_all() -> None:
    course = Course(QATSchedule(start=3, freeze_bn=4, observer_off=5))
    course.shorten()
    assert (course.schedule.start, course.schedule.freeze_bn, course.schedule.observer_off) == (0, None, None)


def test_before_the_first_step_nothing_is_logged() -> None:
    assert Course(QATSchedule()).figures == {}
