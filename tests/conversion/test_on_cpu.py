"""What a graph says of devices and types, in its copy on the CPU and in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from lq.conversion.on_cpu import on_cpu_in_float32


class Casts(nn.Module):
    """To integers, and to its own type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.own = nn.Linear(2, 2, dtype=dtype), dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y.to(torch.int64), y.to(dtype=self.own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_float_type_of_the_model_is_replaced_and_no_other(dtype: torch.dtype) -> None:
    twin = on_cpu_in_float32(fx.symbolic_trace(Casts(dtype)))
    assert [y.dtype for y in twin(torch.ones(1, 2, dtype=dtype))] == [torch.int64, torch.float32]


def test_what_is_made_elsewhere_is_made_on_the_cpu_whatever_the_default_device() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.ones, (2,), {"device": torch.device("meta")}))
    twin = on_cpu_in_float32(fx.GraphModule(nn.Module(), graph))
    with torch.device("meta"):
        assert twin().device.type == "cpu"
