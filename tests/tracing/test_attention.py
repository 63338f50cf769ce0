"""Which products of a recorded call are attention's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.instrument.record import record
from lq.tracing.attention import attention_products
from lq.tracing.ops import recorded


class Net(nn.Module):
    def __init__(self, body: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("frequencies", torch.rand(4, 1))

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def products(body: Callable[[Tensor], Any]) -> list[str]:
    recorder = record(Net(body), (torch.rand(2, 4, 4),), {}).evaluation
    return [recorded(product.node) for product in attention_products(recorder.graph)]


def with_mask_and_bias(x: Tensor) -> Tensor:
    scores = (x / 2) @ x.mT + torch.rand(4, 4)
    scores = scores.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)
    return F.dropout(scores.softmax(-1), 0.1, True).to(torch.float32) @ x


def by_cosine(x: Tensor) -> Tensor:
    return torch.matmul(torch.softmax((F.normalize(x) @ F.normalize(x).mT).clamp(max=1) * 10, -1), x)


def from_two_sources(x: Tensor) -> Tensor:
    """As Transformer-XL and DeBERTa add what the positions say."""
    return ((x @ x.mT + x @ (x + 1).mT) * 0.5).softmax(-1) @ x


def values_first(x: Tensor) -> Tensor:
    return x @ (x @ x.mT).softmax(-1).mT


def transposed(x: Tensor) -> Tensor:
    """Cross-covariance attention: channels attend to channels."""
    return torch.bmm(torch.bmm(x.mT, x).softmax(-1), x.mT).mT


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (with_mask_and_bias, ["matmul"] * 2),
        (by_cosine, ["matmul"] * 2),
        (from_two_sources, ["matmul"] * 3),
        (values_first, ["matmul"] * 2),
        (transposed, ["bmm"] * 2),
        (lambda x: F.scaled_dot_product_attention(x, x, x), []),  # one call, unless it is recorded step by step
    ],
)
def test_attention_is_found(body: Callable[[Tensor], Any], found: list[str]) -> None:
    assert products(body) == found


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x @ x.mT,  # similarities
        lambda x: (x @ x.mT).softmax(-1),  # probabilities that nothing is multiplied with
        lambda x: x.softmax(-1) @ x,  # a mixture, by scores that are no product
        lambda x: ((x @ x.mT).cos().softmax(-1)) @ x,  # angles, as of rotary embeddings
        lambda x: (torch.ones(4, 4) @ torch.ones(4, 4)).softmax(-1) * x,
    ],
)
def test_other_products_are_left_alone(body: Callable[[Tensor], Any]) -> None:
    assert products(body) == []
