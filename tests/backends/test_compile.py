"""torch.compile: one graph in every phase, and one compilation for each."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, set_phase

PHASES = {
    "before start": (False, False, False),
    "observers on": (True, True, False),
    "observers off": (True, False, False),
    "frozen": (True, False, True),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.relu6, self.fc = nn.ReLU6(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_every_phase_compiles_to_one_graph_with_the_same_numbers():
    x = torch.randn(8, 3, 8, 8)
    prepared = prepare(Net(), example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    torch._dynamo.reset()
    compiled = torch.compile(prepared, fullgraph=True)
    for name, (fake_quant, observer, freeze_bn) in PHASES.items():
        set_phase(prepared, fake_quant=fake_quant, observer=observer, freeze_bn=freeze_bn)
        eager, fast = (step(prepared, call, x) for call in (prepared, compiled))
        for a, b in zip(eager, fast, strict=True):
            # Compiled code fuses multiplications and additions: last bits differ, and a tie may fall the other way.
            assert (a - b).norm() < 1e-2 * a.norm(), name
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        step(prepared, compiled, x)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before, f"{name} compiles again"


def step(prepared: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output, gradients and ranges of one step, after which everything is as before."""
    before = copy.deepcopy(prepared.state_dict())
    prepared.zero_grad()
    y = call(x)
    y.square().mean().backward()
    results = [y.detach(), *(p.grad for p in prepared.parameters()), prepared.qat_state.max_val.clone()]
    prepared.load_state_dict(before)
    return results
