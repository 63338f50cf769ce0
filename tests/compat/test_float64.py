"""What is put on a device that has no float64, proven without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lq.compat import float64
from lq.compat.float64 import as_float64, has_float64
from lq.core.calibration.entropy import entropy_range
from lq.core.calibration.histogram import Histogram
from lq.core.calibration.ranges import Grid
from lq.metrics import SQNR, MaxAbsError, ModelComparison, Top1Agreement, max_abs_error, sqnr, top1_agreement

DEVICE = "meta"  # PyTorch for other machines is built without mps


class Refusing(TorchDispatchMode):
    """Objects to float64 on the device, as one without it would; what is copied from there to the CPU is zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                assert tensor.device.type != DEVICE, f"{func} makes float64 on a device without it"
        return out


@pytest.fixture(autouse=True)
def _no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(float64, "_WITHOUT", {DEVICE})
    with Refusing():
        yield


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    return torch.empty(8, 10, device=DEVICE), torch.empty(8, 10, device=DEVICE)


def test_what_is_refused_is_noticed(scores):
    with pytest.raises(AssertionError, match="float64 on a device"):
        scores[0].double()


def test_float64_goes_to_the_cpu(scores):
    assert not has_float64(scores[0].device)
    assert as_float64(scores[0]).device.type == "cpu"
    assert as_float64(scores[0]).dtype == torch.float64


@pytest.mark.parametrize(
    ("function", "metric_class"), [(sqnr, SQNR), (top1_agreement, Top1Agreement), (max_abs_error, MaxAbsError)]
)
def test_metrics_keep_it_on_the_cpu(function, metric_class, scores):
    assert function(*scores).dtype == torch.float64
    metric = metric_class().to(DEVICE)
    for _ in range(2):
        for _ in range(2):
            metric.update(*scores)
        assert metric.compute().dtype == torch.float64
        metric.reset()
    assert metric.to("cpu").device.type == "cpu"


def test_so_does_a_comparison(scores):
    comparison = ModelComparison(["fp32", "int8"], SQNR(), [("fp32", "int8")], DEVICE)
    comparison.update(dict(zip(comparison.models, scores, strict=True)), scores[0])


def test_entropy_does_without():
    counts, ends = torch.empty(2, 2048, device=DEVICE, dtype=torch.int64), torch.empty(2, device=DEVICE)
    grid = Grid(ends, ends, torch.empty(2, device=DEVICE, dtype=torch.bool))
    low, high = entropy_range(Histogram(counts, ends, ends), grid)
    assert low.dtype == high.dtype == torch.float32
