from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, state_of
from lq.backends.self_check import self_check
from tests.backends.test_prepare import X, make_net


def test_a_graph_that_computes_something_else_is_refused():
    net, x = make_net(), torch.randn(X)
    other, prepared = copy.deepcopy(net), prepare(copy.deepcopy(net))
    with torch.no_grad():
        other[-1].bias.add_(0.01)
    with pytest.raises(ValueError, match=r"float and prepared outputs differ by 0\.01.*Exclude the module at fault"):
        self_check(other, prepared, (x,))
    with torch.no_grad():
        prepared[-1].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="differ in where they are infinite or NaN"):
        self_check(net, prepared, (x,))


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.fc, self.value = nn.Linear(4, 2), value

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return {"tensor": y, "tuple": (y, y), "one": (y,), "dict": {"a": y}, "other": {"b": y}}[self.value]


@pytest.mark.parametrize(("a", "b"), [("tensor", "tuple"), ("tuple", "one"), ("dict", "tuple"), ("dict", "other")])
def test_another_structure_of_the_output_is_refused(a: str, b: str):
    first, second = Returns(a), Returns(b)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"returns|structure"):
        self_check(first, prepare(second), (torch.randn(3, 4),))


def test_a_shape_that_broadcasts_is_refused():
    class Row(Returns):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)[:1]

    first, second = Returns("tensor"), Row("tensor")
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 4).repeat(3, 1)
    with pytest.raises(ValueError, match="shape"):
        self_check(first, prepare(second), (x,))


@pytest.mark.parametrize("training", [True, False])
def test_the_self_check_leaves_modes_flags_statistics_and_inputs_alone(training: bool):
    net, x = make_net().train(training), torch.randn(X)
    net[1].eval()
    before, given = copy.deepcopy(net.state_dict()), x.clone()
    prepared = prepare(net, example_args=(x,))
    after = net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert (net.training, net[1].training, prepared.training) == (training, False, training)
    assert prepared.get_submodule("1").training is False
    assert torch.equal(x, given)
    assert not state_of(prepared).ready(0)


class Sampling(nn.Module):
    """A variational autoencoder that draws in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.encode(x).chunk(2, 1)
        decoded: Tensor = self.decode(mean + torch.randn_like(mean) * (0.5 * log_var).exp())
        return decoded


def test_outputs_that_depend_on_chance_are_told_as_that():
    x, net = torch.randn(4, 6), Sampling().eval()
    prepared = prepare(copy.deepcopy(net), example_args=(x,))
    with pytest.raises(ValueError, match=r"Sampling: two calls .* random numbers.*Draw them only if self\.training"):
        self_check(net, prepared, (x,))
