"""Models of sequences: recurrent layers step by step, and masks that are computed from the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.graph import as_graph
from tests.export.formats.litert.ran import in_litert
from tests.export.nets import calibrated, round_trip

pytest.importorskip("ai_edge_litert")


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(6, 12, num_layers=2, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("recurrence", ["int8", "float"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_step_by_step(kind: type[nn.RNNBase], recurrence: str, tmp_path: Path) -> None:
    x = torch.randn(8, 5, 6)
    ran = in_litert(Reader(kind), x, tmp_path, lq.QConfig(recurrence=recurrence))
    assert ran.steps(x) <= 2
    assert ran.steps(x[:3]) <= 2, "any batch"
    layers = ran.info["float_layers"]
    assert (layers == []) == (recurrence == "int8")


class Encoder(nn.Module):
    """Reads tokens up to the length that an integer mask says, as BERT does; its mask goes through indices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.qkv, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        count, length = tokens.shape
        rows, columns = torch.arange(count)[:, None, None, None], torch.arange(length)[None, None, None]
        read = mask.bool()[rows, columns] & (columns <= length)
        q, k, v = self.qkv(self.table(tokens)).unflatten(2, (3, 2, 8)).unbind(2)
        mixed = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=read)
        return self.head(mixed.transpose(1, 2).flatten(2)[:, 0])


def test_a_mask_may_be_computed_from_the_inputs(tmp_path: Path) -> None:
    tokens, lengths = torch.randint(0, 20, (6, 9)), torch.tensor([9, 5, 1, 7, 3, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    example: Any = ((tokens, mask), {})
    prepared = calibrated(Encoder(), example)
    model, _ = round_trip("litert", prepared, example, tmp_path)
    with torch.no_grad():
        expected = as_graph(prepared)(tokens, mask)
        assert torch.allclose(model(tokens, mask), expected, atol=float(expected.abs().max()) / 50)
        changed = tokens.where(mask.bool(), torch.tensor(7))
        assert torch.equal(model(changed, mask), model(tokens, mask)), "what is masked is not read"
        assert not torch.allclose(model(tokens, torch.ones_like(mask)), expected, atol=1e-3)
