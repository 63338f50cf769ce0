"""A row of attention that is masked as a whole attends to nothing in every file, as in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.metrics import sqnr
from tests.export.nets import calibrated, example_of, round_trip

RUNTIMES = {"torch": "torch", "pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}


def as_numbers(mask: Tensor, unread: float) -> Tensor:
    return torch.where(mask, 0.0, unread)


MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of a constant mask and a computed one
    "constant": lambda held, wanted: held,
    "constant, as numbers": lambda held, wanted: as_numbers(held, -math.inf),
    "computed": lambda held, wanted: held & wanted,
    "computed, as numbers": lambda held, wanted: as_numbers(held & wanted, -math.inf),
    "computed, as large numbers": lambda held, wanted: as_numbers(held & wanted, torch.finfo(torch.float32).min),
}


class Attends(nn.Module):
    def __init__(self, mask: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask, self.before, self.behind = mask, nn.Linear(8, 24), nn.Linear(8, 8)
        held = torch.ones(6, 6, dtype=torch.bool).tril()
        held[2] = False
        self.register_buffer("held", held)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.before(x).chunk(3, -1))
        mask = MASKS[self.mask](self.get_buffer("held"), (x[..., :1] > 0).unsqueeze(1))
        attended = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        made: Tensor = self.behind(attended.transpose(1, 2).flatten(2))
        return made


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_row_without_anything_to_read_is_the_same(mask: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(RUNTIMES[kind])
    example, x = example_of(torch.randn(4, 6, 8)), torch.randn(16, 6, 8)
    prepared = calibrated(Attends(mask), example)
    model, _ = round_trip(kind, prepared, example, tmp_path)
    with torch.no_grad():
        assert sqnr(prepared(x), model(x)) > 35
