from __future__ import annotations

import copy
import random
from typing import Any

import lightning as L
import numpy
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lq.deployment.evaluation import ValidationData, compare_on_validation_data
from lq.lightning_module.validation import (
    call_sample,
    first_validation_call,
    labels_of,
    validate_alone,
    validation_samples,
)
from lq.metrics import targets_of
from tests.tiny import Tiny, make_data, val_loader


def test_share_of_one_process_becomes_all_data() -> None:
    data = make_data(12)
    sampler: Any = DistributedSampler(data, num_replicas=3, rank=1, shuffle=False)
    module, seen = Tiny(), []
    module.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    compare_on_validation_data(module, "model", {}, ValidationData(DataLoader(data, batch_size=5, sampler=sampler)))
    assert torch.equal(torch.cat(seen), data.tensors[0])


def test_nothing_is_prepared_or_set_up_again() -> None:
    class Data(L.LightningDataModule):
        def prepare_data(self) -> None:
            raise AssertionError("downloads again")

        def setup(self, stage: str) -> None:
            raise AssertionError("splits again")

    class Own(Tiny):
        def prepare_data(self) -> None:
            raise AssertionError("downloads again")

    results = compare_on_validation_data(Own(), "model", {}, ValidationData(val_loader(), datamodule=Data())).results
    assert results.keys() == {"fake"}


def test_models_are_compared_with_the_same_random_numbers_and_training_keeps_its_own() -> None:
    class Draws(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("drawn", torch.rand(()))

    module, before = Draws(), torch.get_rng_state()
    models = {version: copy.deepcopy(module.model).eval() for version in ("torch", "onnx")}
    results = compare_on_validation_data(module, "model", models, ValidationData(val_loader())).results
    assert len({results[version]["drawn"] for version in ("fake", "torch", "onnx")}) == 1
    assert torch.equal(torch.get_rng_state(), before)


class Keywords(Tiny):
    """Batches are dicts, and the target takes a keyword."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(input=batch["image"])


def test_samples_are_what_reached_the_target_and_can_be_trained_with() -> None:
    data = [{"image": x, "label": y} for x, y in (make_data()[index] for index in range(12))]
    module = Keywords()
    samples = validation_samples(module, "model", DataLoader(data, batch_size=4), None, targets_of, 2)
    assert [labels_of(sample).tolist() for sample in samples] == [[0, 1, 0, 1], [0, 1, 0, 2]]
    args, kwargs = samples[0].inputs
    assert args == ()
    assert torch.equal(kwargs["input"][1], data[1]["image"])
    call_sample(module.model, samples[0]).sum().backward()
    assert module.model[0].weight.grad is not None
    assert not module.model._forward_hooks


def test_validation_data_without_a_batch_are_told_as_that() -> None:
    class Empty(Tiny):
        def val_dataloader(self) -> Any:
            return DataLoader([])  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="the validation data have no batch"):
        first_validation_call(Empty(), "model")


@pytest.mark.parametrize("skipped", [0, 1, 10])
def test_the_first_call_may_come_in_a_later_batch(skipped: int) -> None:
    class Skips(Tiny):
        def val_dataloader(self) -> Any:
            return DataLoader(make_data(12), batch_size=1)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx >= skipped:
                self.model(batch[0])

    (x,), _ = first_validation_call(Skips(), "model")[0]
    wanted = {0: 0, 1: 7, 10: 11}[skipped]  # the last of the first 1, 8 or all batches
    assert torch.equal(x[0], make_data(12).tensors[0][wanted])


def test_a_step_that_never_calls_the_target_is_told_as_that() -> None:
    class Never(Tiny):
        def val_dataloader(self) -> Any:
            return val_loader()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(ValueError, match="validation_step did not call the quantized target"):
        first_validation_call(Never(), "model")


def test_a_module_without_validation_data_gives_no_samples() -> None:
    assert validation_samples(Tiny(), "model", DataLoader([]), None, targets_of, 2) == []


def test_augmentations_by_python_and_numpy_are_the_same_in_each_call() -> None:
    class Augments(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"python": random.random(), "numpy": numpy.random.rand(), "torch": torch.rand(())})

    before = random.getstate()
    first, second = (validate_alone(Augments(), val_loader(), None, 2) for _ in range(2))
    assert first == second
    assert len(set(first.values())) == 3
    assert random.getstate() == before
