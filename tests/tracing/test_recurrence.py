"""Recurrent layers step by step compute what those of torch do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lq.tracing.opened import OPENABLE, number_of_steps, step_by_step

LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 4, batch_first=True),
    "two LSTMs both ways": lambda: nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.3),
    "GRU": lambda: nn.GRU(3, 4, 2, batch_first=True),
    "GRU without biases": lambda: nn.GRU(3, 4, bias=False, bidirectional=True),
    "RNN": lambda: nn.RNN(3, 4, batch_first=True),
    "RNN of ReLUs": lambda: nn.RNN(3, 4, nonlinearity="relu"),
}
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]


class Steps(TorchFunctionMode):
    """Computes recurrent calls step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = step_by_step(func, args) if func in OPENABLE else None
        if found is None:
            return func(*args, **(kwargs or {}))
        self.taken.append(number_of_steps(func, args))
        return found(*args, **(kwargs or {}))


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in flat(part)]


def compared(module: nn.Module, *args: Any) -> list[int]:
    expected, mode = flat(module(*args)), Steps()
    with mode:
        got = flat(module(*args))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    grads = [
        torch.autograd.grad(sum(t.square().sum() for t in ts), list(module.parameters())) for ts in (got, expected)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    return mode.taken


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()  # without dropout between the layers
    x = torch.randn(5, 6, 3)
    assert compared(layer, x) == [6 if layer.batch_first else 5]
    shape = layer.num_layers * (1 + layer.bidirectional), 5 if layer.batch_first else 6, 4
    start = [torch.randn(shape) for _ in range(1 + isinstance(layer, nn.LSTM))]
    compared(layer, x, tuple(start) if len(start) > 1 else start[0])


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: Any) -> None:
    torch.manual_seed(0)
    assert compared(kind(3, 4), torch.randn(5, 3)) == [1]
    compared(kind(3, 4, bias=False), torch.randn(5, 3))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_packed_sequences_and_projections_are_left_alone() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    mode = Steps()
    with mode:
        nn.LSTM(3, 4)(packed)
        nn.GRU(3, 4)(packed)
        nn.LSTM(3, 4, proj_size=2)(torch.randn(5, 6, 3))
    assert mode.taken == []


def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4, 2, dropout=1.0).train(), torch.randn(5, 6, 3)
    compared(layer, x)  # all of it is dropped, so that there is no chance
