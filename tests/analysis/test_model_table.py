import pytest
import torch
from torch import nn

from lq.analysis.model_table import CompareOptions, ModelTable, recovered
from lq.ptq.batches import run_batch


def test_the_share_that_is_recovered():
    exact, ptq = {"accuracy": 0.9}, {"accuracy": 0.5}
    assert recovered(exact, ptq, {"accuracy": 0.86}) == pytest.approx(0.9)
    assert recovered(exact, ptq, {"accuracy": 0.4}) == pytest.approx(-0.25)
    assert recovered({"mse": 0.1}, {"mse": 0.5}, {"mse": 0.14}) == pytest.approx(0.9)
    # of less than half a percent a share says nothing
    assert recovered(exact, {"accuracy": 0.895}, {"accuracy": 0.8975}) == pytest.approx(0.5)
    assert recovered(exact, {"accuracy": 0.896}, {"accuracy": 0.9}) is None


def test_a_share_is_of_what_is_lost():
    exact, better, worse = {"loss": 0.0097}, {"loss": 0.0096}, {"loss": 0.013}
    assert recovered(exact, better, worse) is None, "nobody says whether PTQ or QAT is better than float"
    assert recovered(exact, better, worse, higher_is_better=False) is None
    assert recovered(exact, worse, better, higher_is_better=False) == pytest.approx(34 / 33)
    assert recovered({"a": 0.9}, {"a": 0.91}, {"a": 0.91}, higher_is_better=True) is None
    assert recovered({"a": 0.9}, {"a": 0.8}, {"a": 0.91}, higher_is_better=True) == pytest.approx(1.1)


class Figures(nn.Module):
    """Gives its figures to whoever asks."""

    def __init__(self, **figures):
        super().__init__()
        self.figures = figures

    def forward(self, x):
        return x


@pytest.mark.parametrize(("monitor", "higher", "shares"), [("top1", True, [None, 1.1]), (None, None, [None, None])])
def test_the_figure_that_counts_comes_first_and_says_which_way_is_better(monitor, higher, shares):
    x = torch.randn(8, 4)
    own = {"own": lambda model: model.figures, "monitor": monitor, "higher_is_better": higher}
    table = ModelTable(((x[:1],), {}), CompareOptions(seconds=0.01, **own))
    table.add_float(Figures(loss=0.3, top1=0.8))
    table.models["FP32"] = Figures(loss=0.3, top1=0.8)
    for name, top1 in (("PTQ per-channel histogram", 0.7), ("QAT int8", 0.81)):
        table.add(name, Figures(loss=0.3, top1=top1))
    rows = table.rows([(x, torch.zeros(8, dtype=torch.long))], run_batch)
    first = [next(iter(row["metrics"])) for row in rows]
    assert first == [monitor or "loss"] * 3
    assert rows[-1]["recovered"] == pytest.approx(shares[1]) if shares[1] else rows[-1]["recovered"] is None


def test_models_without_a_size_are_judged_but_not_timed():
    x = torch.randn(8, 4)
    table = ModelTable(((x[:1],), {}), CompareOptions(seconds=0.01))
    table.add_float(nn.Sequential(nn.Linear(4, 3)).eval())
    table.add("timed", nn.Linear(4, 3), 1.5)
    table.add("judged", nn.Linear(4, 3))
    rows = {row["model"]: row for row in table.rows([(x, torch.zeros(8, dtype=torch.long))], run_batch)}
    assert rows["timed"]["latency_ms"] > 0
    assert rows["timed"]["size_mb"] == 1.5
    assert "latency_ms" not in rows["judged"]
    assert rows["judged"]["metrics"].keys() == {"accuracy"}


@pytest.mark.parametrize("lacks", ["ptq", "qat"])
def test_nothing_is_recovered_of_a_metric_that_a_version_lacks(lacks):
    known = {"ptq": {"accuracy": 0.8}, "qat": {"accuracy": 0.9}}
    assert recovered({"accuracy": 0.92}, **{**known, lacks: {}}) is None
