"""First and last layers keep the bits of the preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.checkpoints.entry import CheckpointEntry
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.models.annotated import AnnotatedMobileNetV2
from lq.tracing.plan import Plan

W, A = WeightSpec(-7, 7), ActivationSpec(0, 15)


class Net(nn.Module):
    """Two inputs, a residual connection, two heads, and a layer within that reads an input through a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.a, self.norm, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.pool, self.skip = nn.MaxPool2d(1), nn.Conv2d(1, 4, 1)
        self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.left(x)) + torch.relu(self.right(y))
        z = torch.relu(self.norm(self.a(z))) + self.skip(self.pool(x))
        z = torch.relu(self.b(z)).mean((2, 3))
        return self.one(z), self.two(z)


INPUTS = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)


def planned(qconfig: QConfig) -> tuple[dict[str, str], dict[str, str]]:
    plan = lq.plan_of(lq.prepare(Net(), qconfig, example_args=INPUTS))
    return {row.name: str(row.weight) for row in plan.layers}, {row.after: row.grid for row in plan.tensors}


def test_first_and_last_layers_and_what_they_read_and_return() -> None:
    weights, tensors = planned(QConfig(weight=W, activation=A))
    ends = {"left", "right", "skip", "one", "two"}
    assert {name for name, grid in weights.items() if grid.startswith("int7 [-63, 63]")} == ends
    assert all(grid.startswith("int4") for name, grid in weights.items() if name not in ends)
    eight = {name for name, grid in tensors.items() if grid.startswith("uint8")}
    assert {"x", "y", "one", "two"} <= eight
    assert not eight & {"left", "right", "a", "skip"}
    assert any(name in eight for name in ("mean", "b"))  # what both heads read


def test_without_it_all_have_few_bits() -> None:
    weights, tensors = planned(QConfig(weight=W, activation=A, keep="nothing"))
    assert all(grid.startswith("int4") for grid in weights.values())
    assert all(grid.startswith("uint4") for grid in tensors.values())


def test_overrides_count_more() -> None:
    overrides = {"left": LayerQConfig(weight=WeightSpec(-3, 3)), "x": LayerQConfig(activation=ActivationSpec(0, 31))}
    weights, tensors = planned(QConfig(weight=W, activation=A, overrides=overrides))
    assert weights["left"].startswith("int3")
    assert tensors["x"].startswith("uint5")
    assert weights["right"].startswith("int7")


def test_only_the_integers_change_and_only_to_more_bits() -> None:
    own = WeightSpec(-7, 7, per_channel=False, observer="mse")
    weights, _ = planned(QConfig(weight=own))
    assert weights["left"] == "int7 [-63, 63] per tensor, mse"
    wide = QConfig(weight=WeightSpec(-127, 127))
    assert set(planned(wide)[0].values()) == {"int8 [-127, 127] per channel"}
    weights, tensors = planned(QConfig("tensorrt", weight=W, activation=A))
    assert weights["left"].startswith("int8")
    assert tensors["x"].startswith("int8 [-128, 127] symmetric")
    assert tensors["left"].startswith("uint4 [0, 15] affine")


@pytest.mark.parametrize("qconfig", [QConfig(), QConfig(weight=W, keep="nothing")])
def test_nothing_is_said_where_nothing_is_kept(qconfig: QConfig) -> None:
    plan = lq.plan_of(lq.prepare(Net(), qconfig, example_args=INPUTS))
    assert plan.kept == ()
    assert "keep" not in str(plan).replace("keep nothing", "")


def test_activations_of_few_bits_alone() -> None:
    plan = lq.plan_of(lq.prepare(Net(), QConfig(activation=A), example_args=INPUTS))
    assert {"x", "y", "one", "two"} <= set(plan.kept)
    assert "left" not in plan.kept


def test_two_bits_within_and_eight_at_the_ends() -> None:
    weights, _ = planned(QConfig(weight=WeightSpec(-1, 1)))
    assert weights["left"] == "int7 [-63, 63] per channel"
    assert weights["a"] == "int2 [-1, 1] per channel, mse"


def test_the_plan_says_so_and_a_checkpoint_knows_it() -> None:
    qconfig = QConfig(weight=W)
    plan = lq.plan_of(lq.prepare(Net(), qconfig, example_args=INPUTS))
    assert plan.kept[:3] == ("left", "right", "skip")
    assert "first and last layers keep the preset's bits: left, right, skip" in str(plan)
    assert Plan.from_dict(plan.to_dict()) == plan
    entry = CheckpointEntry("model", qconfig, started=True)
    again = CheckpointEntry.from_dict(entry.to_dict())
    assert again.qconfig.keep == "ends"
    with pytest.raises(ValueError, match=r"keep='ends' \(here 'nothing'\)"):
        again.require_same_plan("model", QConfig(weight=W, keep="nothing"))


def test_of_a_module_without_an_example() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = lq.plan_of(lq.prepare(net, QConfig(weight=W, activation=A)))
    assert [str(row.weight)[:4] for row in plan.layers] == ["int7", "int4", "int7"]
    assert [row.grid[:5] for row in plan.tensors] == ["uint8", "uint4", "uint8", "uint8"]


def test_a_network_of_ends_alone_has_none() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = lq.plan_of(lq.prepare(net, QConfig(weight=W, activation=A)))
    assert (plan.kept, {row.grid[:5] for row in plan.tensors}) == ((), {"uint4"})
    assert {str(row.weight)[:4] for row in plan.layers} == {"int4"}


def test_of_an_annotated_model() -> None:
    qconfig = QConfig(weight=W, activation=A, backend="eager")
    rows = lq.plan_of(lq.prepare(AnnotatedMobileNetV2(classes=3), qconfig)).layers
    grids = [str(row.weight)[:4] for row in rows if row.weight is not None]
    assert (grids[0], grids[-1]) == ("int7", "int7")
    assert set(grids[1:-1]) == {"int4"}


def test_anything_else_is_refused() -> None:
    wrong: Any = "first"
    with pytest.raises(
        ValueError, match=r"Unknown keep='first'. Write keep='ends' to leave the first and last layers the bits of"
    ):
        QConfig(keep=wrong)
