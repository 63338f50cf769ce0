"""Labels are told from inputs by what reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lq
from lq.conversion.graph import as_graph
from lq.tracing.losses import inputs_of_losses


class Classifier(nn.Module):
    """As those of transformers: a loss if there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.fc(x)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels.view(-1)), "logits": logits}


def names(**example: Tensor) -> list[str]:
    return inputs_of_losses(as_graph(lq.prepare(Classifier(), example_kwargs=example).eval()).graph)


def test_labels_are_found_in_the_graph_that_is_exported() -> None:
    x, labels = torch.rand(4, 4), torch.zeros(4, dtype=torch.long)
    assert names(x=x, labels=labels) == ["labels"]
    assert names(x=x) == []


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x, y: (x + 1, F.mse_loss(x, y)), ["y"]),
        (lambda x, y: (x + 1, F.binary_cross_entropy_with_logits(x, y.float())), ["y"]),
        (lambda x, y: (x[: y.size(0)], F.mse_loss(x, y)), ["y"]),
        (lambda x, y: (x + y, F.mse_loss(x, y)), []),  # it is an input as well
        (lambda x, y: F.mse_loss(x, y), []),  # the loss is all that there is
        (lambda x, y: x + 1, []),  # nothing reads it
    ],
)
def test_what_only_a_loss_reads_is_no_input(function: Callable[..., Any], found: list[str]) -> None:
    assert inputs_of_losses(fx.symbolic_trace(function).graph) == found
