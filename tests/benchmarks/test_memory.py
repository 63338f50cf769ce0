"""The benchmark of memory, at tiny size; what it counts does not depend on the machine."""

import json

import pytest
import torch
from torch import nn

from benchmarks import memory
from benchmarks._variants import VARIANTS, Step

pytest.importorskip("torchvision")


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2"])
def test_lq_saves_at_most_a_quarter_more_than_float(model, tmp_path, capsys):
    file = tmp_path / "memory.json"
    memory.main(["--batch", "2", "--size", "64", "--models", model, "--json", str(file)])
    rows = {row["step"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == list(VARIANTS)
    assert rows["lq, before start"]["saved_ratio"] == rows["float"]["saved_ratio"] == 1.0
    for phase in ("observers on", "observers off", "BN frozen"):
        assert rows[f"lq, {phase}"]["saved_ratio"] <= 1.25  # the goal
    assert rows["stock FX"]["saved_ratio"] > 1.25
    assert model in capsys.readouterr().out


class _Doubling(nn.Module):
    """Saves its input and a factor that it holds as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.__dict__["factor"] = torch.full((3, 4), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight) * self.factor


def test_saved_leaves_out_what_modules_hold():
    model = _Doubling()
    x = torch.randn(3, 4)
    step = Step.of(model, x, torch.tensor([0, 1, 2]))
    # x for the weight's gradient; cross entropy keeps its log-probabilities, its target and a scalar
    expected = x.nbytes + 3 * 4 * 4 + 3 * 8 + 4
    assert memory._saved(step, model) * 1e6 == expected
    assert memory._megabytes(memory._held(model)) * 1e6 == 3 * 4 * 4


def test_views_of_one_storage_count_once():
    x = torch.zeros(10)
    assert memory._megabytes([x, x[:5], x.view(2, 5)]) * 1e6 == x.nbytes
    assert memory._megabytes([x[:5]], excluded=[x]) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reports_its_peak():
    rows = memory.main(["--device", "cuda", "--batch", "2", "--size", "64", "--models", "mobilenet_v2"])
    assert all(row["peak_mb"] > row["saved_mb"] for row in rows)
