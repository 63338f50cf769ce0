from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader, DistributedSampler

from lq.evaluation import (
    Judge,
    Tap,
    ValidationComparison,
    compare_on_validation_data,
    on_cpu,
    quiet_lightning,
)
from tests.tiny import Tiny, make_data, make_net, val_loader


def test_tap_gives_the_last_call_once() -> None:
    net = make_net()
    tap, x = Tap(net), torch.randn(2, 1, 6, 6)
    net(torch.zeros(2, 1, 6, 6))
    y = net(x)
    args, kwargs, output = tap.take()
    assert args[0] is x
    assert kwargs == {}
    assert output is y
    with pytest.raises(ValueError, match=r"did not call the quantized target.*QATCallback\(target="):
        tap.take()
    tap.remove()
    net(x)
    assert not net._forward_hooks


def test_versions_see_what_the_target_saw() -> None:
    net = make_net().eval()
    seen: list[Any] = []

    def other(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        y: torch.Tensor = -net.forward(x)
        return y

    comparison = ValidationComparison(net, {"int8": other}, None, None, sync=False)
    correct = 0
    for x, labels in val_loader():
        correct += int((net(x).argmax(1) == labels).sum())
        comparison.update((x, labels))
        assert torch.equal(seen[-1], x)
    results = comparison.finish()
    assert results["fake"]["accuracy"] == pytest.approx(correct / 12)
    assert results["int8_vs_fake"]["sqnr_db"] == pytest.approx(-6.02, abs=0.01)  # |x - (-x)| = 2 |x|


def test_no_batch_gives_no_results() -> None:
    assert ValidationComparison(make_net(), {}, None, None, sync=False).finish() == {}


@pytest.mark.parametrize("layout", ["one", "list", "dict"])
def test_all_validation_data_are_used(layout: str) -> None:
    class Several(Tiny):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    module = Several()
    layouts = {"one": val_loader(12), "list": [val_loader(6), val_loader(6)], "dict": {"a": val_loader(12)}}
    loaders: Any = layouts[layout]

    class Count(torchmetrics.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

        def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
            self.total = self.total + len(target)

        def compute(self) -> torch.Tensor:
            return self.total  # type: ignore[return-value]

    results, _ = compare_on_validation_data(module, "model", {}, Judge(loaders, metric=Count()))
    assert results == {"fake": {"count": 12.0}}
    limited, calls = compare_on_validation_data(
        module, "model", {}, Judge(val_loader(), metric=Count(), limit=1), keep=3
    )
    assert len(calls) == 1
    assert limited == {"fake": {"count": 6.0}}


def test_share_of_one_process_becomes_all_data() -> None:
    data = make_data(12)
    sampler: Any = DistributedSampler(data, num_replicas=3, rank=1, shuffle=False)
    module, seen = Tiny(), []
    module.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    compare_on_validation_data(module, "model", {}, Judge(DataLoader(data, batch_size=5, sampler=sampler)))
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

    results, _ = compare_on_validation_data(Own(), "model", {}, Judge(val_loader(), datamodule=Data()))
    assert results.keys() == {"fake"}


def test_on_cpu_copies_and_casts() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    copied = on_cpu({"x": x, "ids": torch.ones(2, dtype=torch.int64), "flag": True})
    assert copied["x"].dtype == torch.float32
    assert copied["ids"].dtype == torch.int64
    assert copied["flag"] is True
    y = torch.ones(2)
    assert on_cpu((y,))[0].data_ptr() != y.data_ptr()


def test_quiet_lightning_restores_levels_and_keeps_other_warnings() -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with quiet_lightning():
        assert logger.level == logging.ERROR
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    assert logger.level == before
