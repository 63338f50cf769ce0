import pytest
import torch
from torch import nn

from lq.analysis.range_counts import RangeListener, _some
from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.ptq import prepare_static

MINMAX = QConfig(activation=ActivationSpec(observer="minmax"))


def test_calls_add_up_until_the_listener_goes():
    x = torch.linspace(-1, 1, 64).reshape(16, 4)
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x], MINMAX)
    listener = RangeListener(prepared)
    with torch.no_grad():
        prepared(x)
        prepared(2 * x)
        listener.remove()
        prepared(100 * x)
    row = listener.rows()[0]
    beyond = (2 * x.abs() > 1.005).float().mean() / 2  # half a step lies on both sides of the ends
    assert row["saturated"] == pytest.approx(float(beyond), abs=0.02)
    assert row["used_levels"] <= row["levels"] == 256


def test_it_runs_where_validation_does():
    prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)])
    with torch.inference_mode():
        listener = RangeListener(prepared)
        prepared(torch.randn(8, 4))
        listener.remove()
        assert listener.rows()[0]["used_levels"] > 8


def test_quantizers_without_a_range_are_left_out():
    listener = RangeListener(prepare(nn.Sequential(nn.Linear(4, 2))))
    assert listener.rows() == []


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "with gaps"])
def test_some_values_are_from_all_over_the_tensor(layout):
    x = torch.arange(4 * 8 * 16 * 16.0).reshape(4, 8, 16, 16)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "with gaps":
        x = x[:, :, ::2]
    some = _some(x, 100)
    assert 80 <= some.numel() <= 120
    assert torch.isin(some, x).all()
    assert len(some.unique()) == some.numel()
    share = torch.histc(some, 4, 0, float(x.max())) / some.numel()
    assert (share - 0.25).abs().max() < 0.05, "each image has its share"
    channels = (some // 256).long() % 8
    assert (torch.bincount(channels, minlength=8) > 0).all()
    assert _some(x, None) is x


def test_statistics_of_some_values_are_close_to_those_of_all():
    x = torch.randn(16, 8, 32, 32)
    prepared = prepare_static(nn.Sequential(nn.Conv2d(8, 4, 1)), [x[:1]])
    rows = []
    for limit in (None, 2**14):
        listener = RangeListener(prepared, limit)
        with torch.no_grad():
            prepared(x)
        listener.remove()
        rows.append(listener.rows()[0])
    assert rows[0]["saturated"] == pytest.approx(rows[1]["saturated"], abs=2e-3)
    assert rows[0]["used_levels"] >= rows[1]["used_levels"] > 200
