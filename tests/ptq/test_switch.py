import copy

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare, state_of
from lq.config.qconfig import QConfig
from lq.core.fake_quantize import FakeQuantize
from lq.metrics import sqnr
from lq.ptq.calibrate import calibrate
from lq.ptq.switch import quantize_only


class Residual(nn.Module):
    """A fork, a join, a pooling that keeps the grid and a cheap float operation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.right = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(self.act(self.stem(x)))
        x = self.act(self.left(x) + self.right(x))
        return self.head(self.mean(x).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Residual().eval()


DATA = torch.Generator().manual_seed(1)
X = torch.randn(16, 1, 8, 8, generator=DATA)
LAYERS = ["stem", "left.0", "right", "head"]


def placed(prepared, layers):
    """How many parts are quantized."""
    with quantize_only(prepared, layers):
        parts = [m for m in prepared.modules() if isinstance(m, FakeQuantize)]
        return sum(part.__dict__["state"].fake_quant for part in parts)


@pytest.mark.parametrize("off", LAYERS)
def test_a_layer_that_is_off_is_placed_as_if_it_were_excluded(model, off):
    prepared, excluding = prepare(copy.deepcopy(model), example_args=(X,)), prepare(model, QConfig(exclude=(off,)))
    calibrate(prepared, [X])
    calibrate(excluding, [X])
    others = [name for name in LAYERS if name != off]
    assert placed(prepared, others) == len(state_of(excluding).names)
    with torch.no_grad(), quantize_only(prepared, others):
        # The ranges of the excluded model were calibrated anew, elsewhere the arithmetic is the same.
        assert sqnr(excluding(X), prepared(X)) > 60


@pytest.mark.parametrize("on", LAYERS)
def test_a_layer_that_is_alone_is_placed_as_if_it_were_included(model, on):
    prepared, including = prepare(copy.deepcopy(model), example_args=(X,)), prepare(model, QConfig(include=(on,)))
    calibrate(prepared, [X])
    calibrate(including, [X])
    assert placed(prepared, [on]) == len(state_of(including).names)
    with torch.no_grad(), quantize_only(prepared, [on]):
        assert sqnr(including(X), prepared(X)) > 60


def test_all_and_none_are_the_whole_model_and_the_float_one(model):
    prepared = prepare(copy.deepcopy(model))
    calibrate(prepared, [X])
    with torch.no_grad():
        everything = prepared(X)
        with quantize_only(prepared, LAYERS):
            assert torch.equal(prepared(X), everything)
        with quantize_only(prepared, []):
            assert torch.allclose(prepared(X), model(X), atol=1e-6)  # BatchNorm is computed in another order
        assert torch.equal(prepared(X), everything)


def test_the_state_is_back_after_an_error(model):
    prepared = prepare(model)
    calibrate(prepared, [X])
    before = prepared(X)
    with pytest.raises(RuntimeError, match="inside"), quantize_only(prepared, []):
        raise RuntimeError("inside")
    assert torch.equal(prepared(X), before)


def test_an_unknown_layer_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"'stemm' is not a quantized layer .* stem, "),
        quantize_only(prepare(model, example_args=(X,)), ["stemm"]),
    ):
        pass
