"""The comparison of a module's ``forward`` with its target is over, in every respect, with the first step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.callback.forward_check import ForwardCheck
from tests.callback.conftest import Fit
from tests.tiny import Tiny, qat


class Past(L.Callback):
    """Notes, after every step, whose outputs are still alive, and of what class the module is."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.alive: list[int] = []
        self.kinds: list[type] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        gc.collect()
        self.alive.append(sum(output() is not None for output in self.outputs))
        self.kinds.append(type(pl_module))


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("calls_forward", [True, False])
def test_it_keeps_no_tensors_and_no_listener(fit: Fit, calls_forward: bool, sanity: int) -> None:
    past = Past()

    class Noted(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            output = self(batch[0]) if calls_forward else self.model(batch[0])
            past.outputs.append(weakref.ref(output))
            return F.cross_entropy(output, batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            output = self(batch[0]) if calls_forward else self.model(batch[0])
            past.outputs.append(weakref.ref(output))

    fit(Noted(), qat(), past, max_epochs=1, num_sanity_val_steps=sanity)
    assert past.alive == [0, 0, 0]
    assert past.kinds == [Noted] * 3


class Prepares(L.LightningModule):
    """Does something to images before its model gets them."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.prepare = nn.Conv2d(3, 4, 3), prepare

    def forward(self, x: Tensor) -> Any:
        return self.model(self.prepare(x))


@pytest.mark.parametrize(
    ("prepare", "does_more"),
    [
        (lambda x: x.contiguous(memory_format=torch.channels_last), False),
        (lambda x: x.clamp(0, 1), True),  # which changes nothing here, but may elsewhere
        (lambda x: x.contiguous(memory_format=torch.channels_last) - 1, True),
        (lambda x: x.flip(0), True),
    ],
    ids=["another layout", "limits", "another layout and values", "another order"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_another_layout_of_the_same_images_is_nothing_more(
    prepare: Callable[[Tensor], Tensor], does_more: bool, device: str
) -> None:
    told: list[str] = []
    module = Prepares(prepare).to(device)
    ForwardCheck(module, "model", told.append)
    module(torch.rand(2, 3, 8, 8, device=device))
    assert [("before it" in said) for said in told] == [True] * (does_more or device == "meta")
