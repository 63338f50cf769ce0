"""Convolutions with wide kernels and few channels, which oneDNN gets wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lq
from lq.metrics import sqnr


@pytest.mark.parametrize(("width", "stride", "dilation"), [(8, 1, 1), (8, 4, 1), (12, 2, 1), (16, 1, 2), (7, 2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_int8_equals_fake_quantized(width: int, stride: int, dilation: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(16 * groups, 16, width, stride, padding=3, dilation=dilation, groups=groups)
    x = torch.randn(2, 16 * groups, 90)
    prepared = lq.prepare(nn.Sequential(conv), "portable", (x,))
    lq.calibrate(prepared, [x], show_progress=False)
    lq.set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    with torch.no_grad():
        assert sqnr(prepared.eval()(x), lq.convert(prepared)(x)) > 30
