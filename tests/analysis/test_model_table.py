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
