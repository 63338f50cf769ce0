from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq.core import native
from lq.core.folding import fold_batch_norm
from tests.core.second_derivatives import assert_same_second_derivatives


@pytest.mark.parametrize("in_c", [False, True])
def test_gradients_have_gradients(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(native, "usable", lambda tensor: False)
    mean, variance = torch.randn(4), torch.rand(4) + 0.5

    def folded(weight: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        norm = nn.Module()
        norm.running_mean, norm.running_var, norm.eps = mean, variance, 1e-5
        norm.weight, norm.bias = weight, shift
        return torch.cat(fold_batch_norm(norm, bias))

    def twin(weight: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        factor = weight / (variance + 1e-5).sqrt()
        return torch.cat([factor, (bias - mean) * factor + shift])

    assert_same_second_derivatives(folded, twin, torch.randn(4), torch.randn(4), torch.randn(4))
