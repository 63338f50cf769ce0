"""Arithmetic of several types, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lq.export.formats.onnx import write_program
from lq.export.formats.program import float_program

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

loss = torch.nn.functional.binary_cross_entropy_with_logits
Function = Callable[[Tensor, Tensor], Tensor]


class Calls(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.function(x, mask)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, mask: x + (1.0 - mask) * -1e4,
        lambda x, mask: x * torch.rsub(mask, 1.5, alpha=2),
        lambda x, mask: x * (1.0 - torch.arange(8)),
        lambda x, mask: (1.0 - x) * (1 - mask),
        lambda x, mask: torch.stack([x, mask, x > 0], 1),
        lambda x, mask: torch.stack([x, x], 1),
        lambda x, mask: x.clamp(-1, 0.5),
        lambda x, mask: torch.nn.functional.logsigmoid(100 * x),
        lambda x, mask: loss(100 * x, mask.float()),
        lambda x, mask: loss(100 * x, mask.float(), x.abs(), reduction="none"),
        lambda x, mask: loss(100 * x, mask.float(), pos_weight=torch.arange(1.0, 9.0), reduction="sum"),
        lambda x, mask: torch.logaddexp(100 * x, 100 * x.flip(1)),
        lambda x, mask: torch.logaddexp(x.masked_fill(mask == 0, -torch.inf), torch.tensor(-torch.inf)),
        lambda x, mask: x * mask.mean(1, keepdim=True, dtype=torch.float32),
        lambda x, mask: x * mask.mean(dtype=torch.float32),
        lambda x, mask: x * (x > 0).mean((0, 1), dtype=torch.float32),
        lambda x, mask: x * mask.softmax(1, dtype=torch.float32),
        lambda x, mask: x * torch.log_softmax(mask, -1, dtype=torch.float32),
        lambda x, mask: x.softmax(1, dtype=torch.float32) + x.mean(dtype=torch.float32),
        lambda x, mask: torch.atan2(x, x.flip(1)),
        lambda x, mask: torch.atan2(mask, x),
        lambda x, mask: torch.atan2(x, mask[:, :1]),
        lambda x, mask: torch.atan2(mask.float(), x.relu() - 0.0 * x),
    ],
    ids=[
        "mask from a fraction",
        "twice a mask",
        "positions",
        "own types",
        "stack",
        "stack of one type",
        "clamp",
        "logarithm of a sigmoid of nearly 0",
        "loss",
        "loss of each",
        "loss of weights",
        "logarithm of a sum of large exponentials",
        "logarithm of a sum of zeros",
        "mean of a mask",
        "mean of all of a mask",
        "share of truth values",
        "softmax of a mask",
        "logarithm of softmax of a mask",
        "dtype of its own",
        "angle",
        "angle of a mask",
        "broadcast angle",
        "angles at zero",
    ],
)
def test_it_computes_the_same(function: Function, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Calls(function).eval()
    given, more = [(torch.randn(n, 8), torch.randint(0, 2, (n, 8))) for n in (2, 5)]
    program, dynamic = float_program(net, (given, {}))
    assert dynamic
    write_program(program, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    values = dict(zip(("x", "mask"), more, strict=True))
    (out,) = session.run(None, {i.name: values[i.name].numpy() for i in session.get_inputs()})
    torch.testing.assert_close(torch.from_numpy(out), net(*more), rtol=1e-4, atol=1e-5)  # arctan is approximated
