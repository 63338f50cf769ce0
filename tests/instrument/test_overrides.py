"""An override reaches every row that the plan prints: inputs, additions, poolings, calls of functions, second calls."""

from __future__ import annotations

import copy
import glob
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, state_of
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.graph import as_graph
from lq.conversion.reference import reference
from lq.ptq.calibrate import calibrate

FIVE_BITS, FIVE = ActivationSpec(0, 31), LayerQConfig(activation=ActivationSpec(0, 31))


class Net(nn.Module):
    """A layer that is called twice, a layer that is a function, a normalization, poolings, joins, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)
        self.weight, self.norm = nn.Parameter(torch.randn(4, 4)), nn.LayerNorm(4)
        self.side, self.head = nn.Linear(5, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, *, extra: Tensor) -> Tensor:
        x = self.stem(image)
        x = x + torch.relu(self.twice(x))
        x = self.twice(F.max_pool2d(x, 2))
        y = F.linear(F.adaptive_avg_pool2d(self.pool(x), 1).flatten(1), self.weight)
        y = F.linear(self.norm(y), self.weight.t())
        return self.head(torch.cat([y, self.side(extra)], 1))  # type: ignore[no-any-return]


CALL: Any = ((torch.randn(2, 1, 8, 8),), {"extra": torch.randn(2, 5)})


def prepared(keep: str = "nothing", **overrides: LayerQConfig) -> nn.Module:
    torch.manual_seed(0)
    few = QConfig(weight=WeightSpec(-7, 7), activation=ActivationSpec(0, 15), keep=keep, overrides=overrides)
    return prepare(Net(), few, *copy.deepcopy(CALL))


TENSORS = {row.name: row.after for row in plan_of(prepared()).tensors}
LAYERS = [row.name for row in plan_of(prepared()).layers]


def test_the_plan_has_a_name_for_each() -> None:
    assert {"image", "extra", "add", "adaptive_avg_pool2d", "linear", "norm", "cat", "twice", "twice (2)"} <= set(
        TENSORS.values()
    )
    assert len(set(TENSORS.values())) == len(TENSORS)
    assert "linear" in LAYERS


@pytest.mark.parametrize("keep", ["nothing", "ends"])
@pytest.mark.parametrize("slot", TENSORS)
def test_every_value_can_have_its_own_bits(slot: str, keep: str) -> None:
    changed = prepared(keep, **{TENSORS[slot]: FIVE})
    found = {
        name for name, spec in zip(state_of(changed).names, state_of(changed).specs, strict=True) if spec == FIVE_BITS
    }
    assert slot in found
    assert len(found) == (2 if TENSORS[slot] == "twice" else 1), "the name of a layer means all its calls"


@pytest.mark.parametrize("layer", LAYERS)
def test_every_weight_can_have_its_own_bits(layer: str) -> None:
    rows = plan_of(prepared(**{glob.escape(layer): LayerQConfig(weight=WeightSpec(-15, 15))})).layers
    assert [row.name for row in rows if row.weight == "int5 [-15, 15] per channel"] == [layer]


def test_classes_of_modules_that_are_no_layers_are_patterns_too() -> None:
    rows = plan_of(prepared(**{"type:LayerNorm": FIVE})).tensors
    assert [row.after for row in rows if row.grid.startswith("uint5")] == ["norm"]


def test_the_deployed_graph_has_the_bits() -> None:
    changed = prepared(add=FIVE, image=FIVE)
    calibrate(changed, [CALL], lambda model, call: model(*call[0], **call[1]), show_progress=False)
    clamps = [node for node in reference(as_graph(changed, CALL)).graph.nodes if node.target is torch.clamp]
    steps = {round((node.args[2] - node.args[1]) / scale_of(node)) for node in clamps}
    assert steps == {15, 31}


def scale_of(clamp: Any) -> float:
    return float(next(iter(clamp.users)).args[1])


@pytest.mark.parametrize(
    ("pattern", "override", "message"),
    [
        ("pool", FIVE, "activation of 'pool'"),
        ("add", LayerQConfig(weight=WeightSpec(-15, 15)), "weight of 'add'"),
    ],
)
def test_an_override_that_changes_nothing_is_told(pattern: str, override: LayerQConfig, message: str) -> None:
    with pytest.warns(UserWarning, match=f"overrides that change nothing.*{message}"):
        changed = prepared(**{pattern: override})
    assert any(message in note for note in plan_of(changed).notes)
