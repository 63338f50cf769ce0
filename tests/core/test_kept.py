"""A module that has run is as it was: parameters, tensors, containers, whatever its forward has changed."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of, prepare
from lq.core.kept import as_it_was


class Follows(nn.Module):
    """A layer, and a slow copy of it that follows in training, as in MoCo and BYOL."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.slow = nn.Linear(4, 2), nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            for fast, slow in zip(self.layer.parameters(), self.slow.parameters(), strict=True):
                slow.data = slow.data * 0.9 + fast.data * 0.1
        y: Tensor = self.layer(x) + self.slow(x)
        return y


def test_a_parameter_that_forward_writes_stays_what_it_was() -> None:
    net, x = Follows(), torch.randn(3, 4)
    before, slow = copy.deepcopy(net.state_dict()), net.slow.weight
    prepared: Any = prepare(net, example_args=(x,))
    assert prepared.slow.weight is slow
    assert all(torch.equal(prepared.state_dict()[name], value) for name, value in before.items())
    assert [row.name for row in plan_of(prepared).quantized] == ["layer", "slow"]


class Keeps(nn.Module):
    """Writes into all that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.grows = torch.zeros(2), torch.zeros(1)
        self.recent, self.counts, self.named = deque([1], maxlen=2), Counter("aab"), OrderedDict(last=0)
        self.by_name, self.nested, self.pair = defaultdict(list, a=[1]), {"a": [1, {2}]}, (torch.ones(1), [3])
        self.register_buffer("sparse", torch.eye(2).to_sparse())
        self.sparse: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.mean.add_(x.mean())
        self.grows.data = torch.ones(3)
        self.recent.extend([5, 6, 7])
        self.counts.update("abc")
        self.named["last"] += 1
        self.by_name["b"].append(2)
        self.by_name["a"].append(2)
        self.nested["a"][1].add(4)  # type: ignore[attr-defined]
        self.pair[0].mul_(2)
        self.pair[1].append(4)  # type: ignore[union-attr]
        self.sparse.mul_(2)
        return x


def test_tensors_and_containers_of_all_kinds_are_given_back() -> None:
    net = Keeps()
    before, parts = copy.deepcopy(vars(net)), dict(vars(net))
    with as_it_was(net):
        net(torch.ones(2))
    assert all(vars(net)[name] is part for name, part in parts.items())
    for name in ("recent", "counts", "named", "by_name", "nested"):
        assert vars(net)[name] == before[name], name
    assert torch.equal(net.mean, before["mean"])
    assert torch.equal(net.grows, before["grows"])
    assert torch.equal(net.pair[0], before["pair"][0])  # type: ignore[arg-type]
    assert net.pair[1] == [3]
    assert torch.equal(net.sparse.to_dense(), torch.eye(2))


def test_nothing_is_written_where_nothing_was() -> None:
    net = nn.Linear(2, 2)
    loss = net(torch.ones(1, 2)).square().sum()
    with as_it_was(net), torch.no_grad():
        net(torch.ones(1, 2))
    loss.backward()  # which would refuse a weight of another version
    assert net.weight.grad is not None


def test_what_holds_no_values_is_left_alone() -> None:
    lazy, meta = nn.LazyBatchNorm1d(), nn.Linear(2, 2, device="meta")
    with as_it_was(nn.ModuleList([lazy, meta])):
        pass
    assert lazy.has_uninitialized_params()
    assert meta.weight.is_meta


def test_what_holds_itself_is_given_back() -> None:
    net = nn.Identity()
    held: list[Any] = [1]
    held.append(held)
    net.held = held  # type: ignore[assignment]
    with as_it_was(net):
        held.append(2)
    assert held[0] == 1
    assert held[1] is held
    assert len(held) == 2


def test_large_parameters_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lq.core.kept._COPIED", 0)
    net, copied = nn.BatchNorm1d(4), list[int]()
    real = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda t: copied.append(t.numel()) or real(t))  # type: ignore[func-returns-value]
    weight = net.weight.detach().clone()
    copied.clear()
    with as_it_was(net):
        net.weight.data = torch.zeros(4)
        net.running_mean.add_(1)  # type: ignore[union-attr]
    assert copied == [4, 4, 1]  # the buffers
    assert torch.equal(net.weight, weight)
    assert not net.running_mean.any()  # type: ignore[union-attr, operator]
