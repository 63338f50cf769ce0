from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lq.backends.prepare import prepare, set_phase
from lq.callback.first_steps import FirstSteps
from tests.tiny import Tiny, make_trainer


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., FirstSteps]:
    """One training step with a module, in which ``call`` runs what the step runs."""

    def run(module: Tiny, call: Callable[[Any], Any]) -> FirstSteps:
        trainer, first = make_trainer(tmp_path), FirstSteps()
        trainer.training = True
        first.watch(module, "model", lambda inputs: None, is_chosen=True)
        first.begin_step(trainer, module, module.model, "model")
        call(torch.rand(2, 1, 6, 6))
        first.end_step()
        return first

    return run


def prepared() -> Tiny:
    module = Tiny()
    prepare(module.model, example_args=(torch.rand(2, 1, 6, 6),))
    set_phase(module.model, fake_quant=True, observer=True, freeze_bn=False)
    return module


def test_an_epoch_that_calls_the_target(step: Callable[..., FirstSteps]) -> None:
    module = prepared()
    first = step(module, module)
    first.end_epoch()
    assert first.check_calls(module, module.model, "model", {"loss": 0.0})
    assert not first.check_calls(module, module.model, "model", {"loss": 0.0})


def test_an_epoch_that_calls_something_else_is_an_error(step: Callable[..., FirstSteps]) -> None:
    with pytest.raises(ValueError, match="first epoch of training called the target, model"):
        step(prepared(), torch.relu).end_epoch()


def test_a_step_of_qat_that_calls_something_else_is_an_error(step: Callable[..., FirstSteps]) -> None:
    module = prepared()
    with pytest.raises(ValueError, match="first training step did not call the target, model"):
        step(module, torch.relu).check_calls(module, module.model, "model", {"loss": 0.0})


def test_nothing_listens_any_more_once_it_is_removed(step: Callable[..., FirstSteps]) -> None:
    module = prepared()
    before = {name: type(part) for name, part in module.named_modules()}
    step(module, torch.relu).remove()
    assert {name: type(part) for name, part in module.named_modules()} == before
