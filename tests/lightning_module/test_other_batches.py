from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lq.lightning_module.other_batches import samples_of, samples_of_each
from tests.tiny import Tiny, make_data


class Asks(Tiny):
    """Its step wants to know the loader."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:  # type: ignore[override]
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Tiny, Asks])
def test_other_batches_reach_the_target_through_the_step(kind: type[Tiny]) -> None:
    module, batches = kind(), list(DataLoader(make_data(20), batch_size=2))
    samples = samples_of(module, "model", iter(batches), None)
    assert torch.equal(next(samples).inputs[0][0], batches[0][0])
    rest = torch.cat([sample.inputs[0][0] for sample in samples])
    assert torch.equal(rest, make_data(20).tensors[0][2:]), "each once, in order"


class Labelled(Tiny):
    """Its validation takes no batch without labels."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))


def _images(value: float, count: int = 12) -> DataLoader[Any]:
    return DataLoader([(torch.full((1, 6, 6), float(value)), 0)] * count, batch_size=2)  # type: ignore[arg-type]


def _means(*loaders: Any, limit: int) -> list[float]:
    samples = samples_of_each(Labelled(), "model", loaders, None, limit)
    return [float(sample.inputs[0][0].mean()) for sample in samples]


@pytest.mark.parametrize(
    ("counts", "limit", "wanted"),
    [
        ((12, 12), 4, [1, 1, 2, 2]),
        ((12, 12), 5, [1, 1, 1, 2, 2]),
        ((2, 12), 4, [1, 2, 2, 2]),  # what one has not got the next one gives
        ((12, 12), 1, [1]),
        ((12,), 2, [1, 1]),
        ((), 2, []),
    ],
)
def test_each_loader_gives_its_share(counts: tuple[int, ...], limit: int, wanted: list[float]) -> None:
    assert _means(*(_images(value, count) for value, count in enumerate(counts, start=1)), limit=limit) == wanted


def test_a_loader_whose_batches_the_step_does_not_take_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    unlabelled: DataLoader[Tensor] = DataLoader(torch.zeros(12, 1, 6, 6), batch_size=3)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO):
        assert _means(unlabelled, _images(3), limit=4) == [3, 3, 3, 3]
    assert "lq: batches of data loader 1 are left out (ValueError: too many values" in caplog.text
    with pytest.raises(ValueError, match="too many values"):
        _means(unlabelled, unlabelled, limit=4)


class Pairs(Tiny):
    """Compares each image with a brighter one; the model is called for both."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        brighter = x.abs() + 100
        near, far = self(brighter), self(x)
        brighter.zero_()  # what was kept of the call is a copy
        self.log("val/loss", F.cross_entropy(near + far, y))


def test_all_calls_of_a_step_take_turns() -> None:
    batches = list(DataLoader(make_data(24), batch_size=2))
    brightest = [float(sample.inputs[0][0].max()) for sample in samples_of(Pairs(), "model", batches, None)]
    assert len(brightest) == len(batches) == 12
    assert 3 <= sum(found > 100 for found in brightest) <= 9
