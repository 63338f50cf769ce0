from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics

from lq.backends.prepare import prepare
from lq.deployment.evaluation import ValidationComparison, ValidationData, compare_on_validation_data
from tests.tiny import Tiny, make_net, val_loader


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


class Broken(torchmetrics.MeanMetric):
    def update(self, output: Any, target: Any) -> None:
        """Nothing to do."""

    def compute(self) -> Any:
        raise ValueError("too few samples of class 2")


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_error_of_the_users_metric_is_not_taken_for_no_batch() -> None:
    net = make_net().eval()
    comparison = ValidationComparison(net, {}, Broken(), None, sync=False)
    batch = next(iter(val_loader()))
    net(batch[0])
    comparison.update(batch)
    with pytest.raises(ValueError, match="too few samples of class 2"):
        comparison.finish()


def test_what_the_users_code_raises_before_the_first_batch_is_what_is_raised() -> None:
    class Fails(Tiny):
        def setup(self, stage: str) -> None:
            raise RuntimeError("the data are elsewhere")

    module = Fails()
    prepare(module.model, example_args=(torch.zeros(2, 1, 6, 6),))
    with pytest.raises(RuntimeError, match="the data are elsewhere"):
        compare_on_validation_data(module, "model", {}, ValidationData(val_loader()))


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

    results = compare_on_validation_data(module, "model", {}, ValidationData(loaders, metric=Count())).results
    assert results["fake"]["count"] == 12.0
    limited = compare_on_validation_data(
        module, "model", {}, ValidationData(val_loader(), metric=Count(), limit=1), keep=3
    )
    assert len(limited.calls) == 1
    assert limited.results["fake"]["count"] == 6.0
