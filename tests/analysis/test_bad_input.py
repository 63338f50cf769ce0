"""One contract for all that takes a model and batches: what is bad is refused, and the message says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from lq.analysis import (
    CompareOptions,
    SensitivityOptions,
    analyze_layers,
    compare,
    find_exclusions,
    range_statistics,
    sensitivity,
    sqnr_per_layer,
)
from lq.ptq import calibrate, prepare_static, quantize_static
from lq.ptq.static import StaticOptions
from lq.report.measure import measure
from tests.analysis.planted import make_batches, make_planted

QUICK = CompareOptions(seconds=0.01)
GOOD = make_batches(1)

CALIBRATING: dict[str, Callable[[Any], Any]] = {
    "calibrate": lambda bad: calibrate(prepare_static(make_planted(), GOOD), bad),
    "quantize_static": lambda bad: quantize_static(make_planted(), bad),
    "quantize_static, all options": lambda bad: quantize_static(
        make_planted(), bad, options=StaticOptions(batch_norm=True, bias=True)
    ),
    "compare": lambda bad: compare(make_planted(), bad, GOOD, options=QUICK),
    "measure": lambda bad: measure(make_planted(), bad, GOOD, options=QUICK),
}
JUDGING: dict[str, Callable[[Any], Any]] = {
    "sqnr_per_layer": lambda bad: sqnr_per_layer(_prepared(), bad),
    "sensitivity": lambda bad: sensitivity(_prepared(), bad),
    "sensitivity by accuracy": lambda bad: sensitivity(_prepared(), bad, "accuracy"),
    "analyze_layers": lambda bad: analyze_layers(_prepared(), bad),
    "find_exclusions": lambda bad: find_exclusions(_prepared(), bad),
    "compare": lambda bad: compare(make_planted(), GOOD, bad, options=QUICK),
}
COUNTING = {"range_statistics": lambda bad: range_statistics(_prepared(), bad)}
EVERYTHING = [*CALIBRATING.items(), *((f"{name}, judging", use) for name, use in JUDGING.items()), *COUNTING.items()]


def _prepared() -> Any:
    return prepare_static(make_planted(), GOOD)


def _named(uses: Any) -> Any:
    return [pytest.param(use, id=name) for name, use in uses]


@pytest.mark.parametrize("use", _named(EVERYTHING))
def test_an_empty_loader(use: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"got no batch: the data loader is empty\. Give at least one"):
        use([])


@pytest.mark.parametrize("use", _named(EVERYTHING))
def test_batches_without_tensors(use: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"has no tensor to call the model with.*give call="):
        use([("text", torch.zeros(1))])


@pytest.mark.parametrize("use", _named(CALIBRATING.items()))
def test_nan_in_calibration(use: Callable[[Any], Any]) -> None:
    x, y = GOOD[0]
    with pytest.raises(ValueError, match=r"NaN or infinity.*isfinite"):
        use([(x.clone().fill_(float("nan")), y)])


@pytest.mark.parametrize("use", _named(JUDGING.items()))
def test_nan_in_what_is_judged(use: Callable[[Any], Any]) -> None:
    x, y = GOOD[0]
    with pytest.raises(ValueError, match=r"output of the model, Tensor .* holds NaN or infinity\. Look for it"):
        use([(x.clone().fill_(float("nan")), y)])


class Quiet(torchmetrics.MeanMetric):
    """Does not say which way it is better."""

    higher_is_better = None

    def update(self, scores: Any, labels: Any) -> None:
        super().update(scores)


@pytest.mark.parametrize("use", [sensitivity, find_exclusions, analyze_layers])
def test_a_metric_that_does_not_say_which_way_is_better(use: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="Quiet does not say whether higher is better; set higher_is_better = True"):
        use(_prepared(), GOOD, Quiet())
    use(_prepared(), GOOD, Quiet(), options=SensitivityOptions(higher_is_better=True))


def test_observers_that_saw_nothing() -> None:
    never = {"call": lambda model, batch: None}
    with pytest.raises(ValueError, match=r"Sequential was not called for the first batch.*call=lambda model, batch"):
        quantize_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)], **never)
    with pytest.raises(ValueError, match=r"was not called for the first batch.*call=lambda model, batch"):
        compare(make_planted(), GOOD, GOOD, options=CompareOptions(call=never["call"]))
