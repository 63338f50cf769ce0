"""A training of which autograd saves bytes is the same training."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lq.callback import QATCallback
from lq.config.schedule import QATSchedule
from lq.core.saving import Saving
from tests.callback.conftest import Fit
from tests.tiny import Tiny


def test_a_fit_with_bytes_is_the_one_with_floats(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, entered = [], []
    enter = Saving.__enter__
    monkeypatch.setattr(Saving, "__enter__", lambda self: entered.append(self) or enter(self))
    for save in ("floats", "bytes"):
        L.seed_everything(0, verbose=False)
        module = Tiny()
        assert not entered
        fit(
            module,
            QATCallback("model", schedule=QATSchedule(start=0, freeze_bn=1, observer_off=2), save=save),
            accumulate_grad_batches=2,
        )
        trained.append(module.state_dict())
    assert entered
    floats, with_bytes = ({k: v for k, v in state.items() if isinstance(v, torch.Tensor)} for state in trained)
    assert [key for key in floats if not torch.equal(floats[key], with_bytes[key])] == []
