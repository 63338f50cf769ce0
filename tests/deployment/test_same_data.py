from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from lq.backends.prepare import prepare, set_phase
from lq.deployment.evaluation import ValidationData, compare_on_validation_data
from lq.ptq.calibrate import calibrate
from tests.tiny import Tiny, make_data, make_net, val_loader


class Stream(IterableDataset[Any]):
    """Goes on where it stopped."""

    def __init__(self) -> None:
        data = make_data(48)
        self.samples = iter([data[i] for i in range(48)])

    def __iter__(self) -> Iterator[Any]:
        return self.samples


def ready() -> Tiny:
    module, x = Tiny(), torch.rand(4, 1, 6, 6)
    prepare(module.model, example_args=(x,))
    calibrate(module.model, [x], show_progress=False)
    set_phase(module.model, fake_quant=True, observer=False, freeze_bn=True)
    return module


def notes_on(loader: Any, **kwargs: Any) -> list[str]:
    versions = {"int8": make_net().eval()}
    found = compare_on_validation_data(ready(), "model", versions, ValidationData(loader, **kwargs))
    assert "val_loss" in found.results["int8"]
    return [note for note in found.notes if "other samples" in note]


def test_a_stream_that_goes_on_brings_other_samples_in_each_pass() -> None:
    (note,) = notes_on(DataLoader(Stream(), batch_size=6), limit=2)
    assert "no iterator that goes on where it stopped" in note


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_loader_that_begins_anew_brings_the_same(shuffled: bool) -> None:
    data = make_data(12)
    loader = DataLoader(data, 6, sampler=RandomSampler(data)) if shuffled else val_loader()
    assert notes_on(loader) == []
