"""Second derivatives of a function, as a penalty on its gradients asks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def second_derivatives(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients by the inputs of a sum of squares of the gradients by the inputs."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*[tensor * 1 for tensor in inputs])  # as behind a layer: no leaves
    firsts = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
    penalty = torch.stack([first.square().sum() for first in firsts]).sum()
    return list(torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True))


def assert_same_second_derivatives(
    function: Callable[..., Tensor], twin: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """Compare a function with a slow twin that consists of PyTorch's operations."""
    got, expected = (second_derivatives(each, list(inputs)) for each in (function, twin))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32, other orders of operations


def straight_through_round(x: Tensor) -> Tensor:
    """Rounds, and is the identity to autograd."""
    return x + (x.round() - x).detach()
