from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.core.lsq import LearnedScale
from lq.lightning_module.stand_in import StandIn, as_float_model
from lq.ptq import calibrate
from lq.tracing.batch import FixedBatch, set_fixed_batch


class Answer(NamedTuple):
    scores: Tensor
    features: Tensor


class Net(nn.Module):
    def forward(self, x: Tensor) -> Answer:
        return Answer(x.sum(1), x)


class Finds(nn.Module):
    def forward(self, images: Any, targets: Any = None) -> Any:
        return [{"scores": image.mean()} for image in images]


def test_tensors_come_back_in_the_structure_of_the_module() -> None:
    net = Net()
    with StandIn(net, lambda x: (x.sum(1) + 1, x)) as standing:
        found = net(torch.ones(2, 3))
        assert isinstance(found, Answer)
        assert found.scores.tolist() == [4.0, 4.0]
    assert standing.calls == 1
    assert net(torch.ones(2, 3)).scores.tolist() == [3.0, 3.0]


def test_what_a_detector_does_not_read_does_not_reach_the_version() -> None:
    net, images = Finds(), list(torch.rand(3, 3, 4, 4))
    targets = [{"boxes": torch.zeros(1, 4)}] * 3
    with StandIn(net, lambda images: [{"scores": image.mean() + 1} for image in images]):
        for found in (net(images, targets), net(images, targets=targets), net(images)):
            assert [float(one["scores"]) for one in found] == pytest.approx([float(i.mean()) + 1 for i in images])
    assert "forward" not in net.__dict__


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_graph_of_one_batch_size_answers_any(count: int) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1).sum(1)

    graph = fx.symbolic_trace(Pair())
    set_fixed_batch(graph, FixedBatch(2, independent=True))

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    net, x = Sums(), torch.rand(count, 2, 2)
    expected = net(x)
    with StandIn(net, graph):
        assert torch.allclose(net(x), expected)


def test_the_module_is_given_back_if_a_version_fails() -> None:
    net = Net()

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"), StandIn(net, fails):
        net(torch.ones(2, 3))
    assert isinstance(net(torch.ones(2, 3)), Answer)


def test_a_module_with_learned_scales_is_given_back_as_it_was() -> None:
    holder, x = nn.Module(), torch.randn(16, 4)
    holder.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before = {key: value.clone() for key, value in holder.state_dict().items()}
    qconfig = QConfig(keep="nothing", weight=WeightSpec(learned_scale=True))
    prepared = calibrated(prepare(holder.model, qconfig, (x,)), x)
    with torch.no_grad():
        for scale in (part for part in prepared.modules() if isinstance(part, LearnedScale)):
            scale.log_factor.fill_(-0.7)
    trained = prepared(x)
    with as_float_model(holder, "model", before):
        assert not torch.equal(prepared(x), trained)
    assert torch.equal(prepared(x), trained)


def calibrated(prepared: nn.Module, x: Tensor) -> nn.Module:
    calibrate(prepared, [x], show_progress=False)
    return prepared
