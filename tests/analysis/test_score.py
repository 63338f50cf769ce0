import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanSquaredError

from lq.analysis.score import Score

BATCHES = [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3), torch.tensor([0, 1, 2]))]


def test_a_metric_is_taken_over_all_batches():
    score = Score(BATCHES, MulticlassAccuracy(3, average="micro"))
    assert score.of(nn.Identity()) == pytest.approx(5 / 6)
    assert (score.name, score.sign) == ("accuracy", 1)


def test_sqnr_is_taken_over_all_batches_against_the_reference():
    score = Score([torch.tensor([[3.0]]), torch.tensor([[4.0]])])
    reference = score.outputs(nn.Identity())
    assert score.of(lambda x: x + 0.5 * (x > 3.5), reference) == pytest.approx(20.0)
    assert (score.name, score.sign) == ("sqnr_db", 1)


def test_the_way_that_is_better_comes_from_the_metric_or_from_the_user():
    assert Score([], MeanSquaredError()).sign == -1
    assert Score([], MeanSquaredError(), higher_is_better=True).sign == 1


def test_progress_is_told_batch_by_batch():
    steps = []
    Score(BATCHES, MulticlassAccuracy(3)).of(nn.Identity(), advance=lambda: steps.append(1))
    assert len(steps) == 2


def test_several_metrics_are_refused():
    with pytest.raises(TypeError, match=r"layers are ranked by one figure"):
        Score([], MetricCollection([MulticlassAccuracy(3)]))
