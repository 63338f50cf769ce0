import threading

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.ptq.dynamic import quantize_dynamic
from lq.timing.latency import compare_latency, size_mb
from tests.tiny import Tiny


class Tagger(nn.Module):
    """A recurrent network for sequences of shape (N, T, 64)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, width, batch_first=True)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x)[0])[0])


def test_a_recurrent_network_becomes_smaller_and_faster_and_stays_close():
    torch.manual_seed(0)
    model, x = Tagger(512).eval(), torch.randn(1, 16, 64)
    before = model(x).detach()
    quantized = quantize_dynamic(model)
    assert size_mb(model) / size_mb(quantized) > 3.5
    with torch.no_grad():
        difference = (quantized(x) - before).abs().mean() / before.abs().mean()
    assert difference < 0.03
    assert torch.equal(model(x), before)
    # The fastest calls: other processes may run beside this one.
    times = compare_latency({"float": model, "int8": quantized}, (x,), min_time=0.3)
    assert times["int8"].min_ms < times["float"].min_ms


def test_kinds_can_be_chosen():
    quantized = quantize_dynamic(Tagger(8), ["GRU"])
    assert type(quantized.lstm) is nn.LSTM
    assert "Dynamic" in type(quantized.gru).__name__ + repr(quantized.gru)
    assert type(quantized.head) is nn.Linear


def test_a_lightning_module_is_copied_without_its_trainer():
    module = Tiny()
    quantized = quantize_dynamic(module)
    assert isinstance(quantized, Tiny)
    assert isinstance(module.model[-1], nn.Linear)
    assert "dynamic" in type(quantized.model[-1]).__module__


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), ["LSTM", "Linear"], r"no LSTM, Linear .*lq.quantize_static"),
        (nn.Linear(2, 2), ["Conv2d"], r"some of \['LSTM', 'GRU', 'Linear'\]"),
        (nn.Linear(2, 2), "Linear", r"layers='Linear' must be a list"),
        (prepare(nn.Sequential(nn.Linear(2, 2))), ["Linear"], "prepared for QAT"),
    ],
)
def test_what_cannot_be_quantized_is_refused(model, layers, message):
    with pytest.raises(ValueError, match=message):
        quantize_dynamic(model, layers)


def test_a_model_may_hold_what_cannot_be_copied():
    model = nn.Sequential(nn.Linear(4, 2))
    model.lock = threading.Lock()
    assert quantize_dynamic(model).lock is model.lock
