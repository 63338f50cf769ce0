"""The benchmark of memory, at tiny size; what it counts does not depend on the machine."""

import json

import pytest
import torch
from torch import nn

from benchmarks import memory
from benchmarks._variants import VARIANTS, Step

pytest.importorskip("torchvision")


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2"])
def test_lq_saves_at_most_a_quarter_more_than_float_and_with_bytes_less(model, tmp_path, capsys):
    file = tmp_path / "memory.json"
    memory.main(["--batch", "2", "--size", "64", "--models", model, "--json", str(file)])
    rows = {row["step"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == list(VARIANTS)
    assert rows["lq, before start"]["saved_ratio"] == rows["float"]["saved_ratio"] == 1.0
    for phase in ("observers on", "observers off", "BN frozen"):
        assert rows[f"lq, {phase}"]["saved_ratio"] <= 1.25  # the goal
    assert rows["stock FX"]["saved_ratio"] > 1.25
    # The goals, of what is saved and held, but for one of resnet18: in so small a batch its later BatchNorms, whose
    # activations are smaller than the weights, are not folded and save their inputs (0.34 at the benchmark's own size).
    assert rows["lq, observers on, bytes"]["both_ratio"] <= {"resnet18": 0.90, "mobilenet_v2": 0.60}[model]
    assert rows["lq, BN frozen, bytes"]["both_ratio"] <= {"resnet18": 0.60, "mobilenet_v2": 0.30}[model]
    assert model in capsys.readouterr().out


class _Doubling(nn.Module):
    """Saves what it makes of its input, and a factor that it holds as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.__dict__["factor"] = torch.full((3, 4), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.exp() * self.weight) * self.factor


def test_saved_is_what_the_forward_pass_leaves_behind():
    model = _Doubling()
    step = Step.of(model, torch.randn(3, 4), torch.tensor([0, 1, 2]))
    saved, peak = memory._saved(step)
    # exp(x) for the weight's gradient; cross entropy keeps its log-probabilities and a scalar, and the loss is one
    assert saved * 1e6 == 2 * 3 * 4 * 4 + 2 * 4
    assert peak > saved
    assert memory._megabytes(memory._held(model)) * 1e6 == 3 * 4 * 4


def test_storages_count_once_and_while_they_are_there():
    with memory.Storages() as storages:
        x = torch.zeros(10)
        views = [x[:5], x.view(2, 5).add_(1)]
        assert storages.alive() == x.nbytes
        del x, views
        assert (storages.alive(), storages.peak) == (0, 40)
    assert memory._megabytes([views := torch.zeros(4), views[:2]]) * 1e6 == 16


@pytest.mark.gpu
def test_a_gpu_reports_its_peak():
    rows = memory.main(["--device", "cuda", "--batch", "2", "--size", "64", "--models", "mobilenet_v2"])
    assert all(row["peak_mb"] > row["saved_mb"] for row in rows)
