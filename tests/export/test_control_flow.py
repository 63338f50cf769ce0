from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.export.control_flow import script_control_flow
from lq.export.torchscript import export_torchscript
from lq.tracing.trace import trace


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return self.positive(x)
        return self.negative(x)


class Unscriptable(Gate):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        if bool(x.sum() > 0):
            return self.positive(x)
        return self.negative(x)


def traced(part: nn.Module) -> nn.Module:
    return trace(nn.Sequential(nn.Linear(4, 8), part, nn.Linear(8, 3))).eval()


@pytest.mark.filterwarnings("ignore:lq. 1 stays float")
def test_every_branch_is_exported() -> None:
    model, signs = traced(Gate()), set()
    frozen = export_torchscript(script_control_flow(model), (torch.randn(2, 4),))
    model.get_submodule("1").register_forward_pre_hook(lambda module, args: signs.add(bool(args[0].sum() > 0)))
    with torch.no_grad():
        for x in 3 * torch.randn(32, 2, 4):
            torch.testing.assert_close(frozen(x), model(x))
    assert signs == {True, False}


@pytest.mark.filterwarnings("ignore:lq. 1 stays float")
def test_what_cannot_be_compiled_is_said() -> None:
    model = traced(Unscriptable())
    with pytest.warns(UserWarning, match=r"\(Unscriptable\) can neither be traced nor compiled.*QATCallback\(target="):
        script_control_flow(model)


def test_models_without_branches_are_left_alone() -> None:
    model = traced(nn.ReLU())
    assert script_control_flow(model) is model
    net = Gate()
    assert script_control_flow(net) is net
