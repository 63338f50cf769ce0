import pytest
import torch
from torch import nn

from lq.analysis.costs import layer_costs
from lq.ptq import prepare_static


def test_multiplications_are_counted():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Flatten(2),
        nn.Linear(64, 5),
    ).eval()  # fmt: skip
    x = torch.randn(3, 4, 4, 4)
    rows = {row["layer"]: row for row in layer_costs(prepare_static(model, [x]), x, min_time=0.001)}
    assert rows["0"]["macs"] == 3 * 16 * 8 * 2 * 9
    assert rows["2"]["macs"] == 3 * 16 * 8 * 4 * 4
    assert rows["4"]["macs"] == 3 * 4 * 64 * 5
    assert rows["2"]["int8_ms"] is None  # the portable preset has no kernel for it
    assert rows["2"]["float_ms"] is None


def test_large_layers_are_faster_in_int8_and_the_order_is_that_of_their_work():
    model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1)).eval()
    x = torch.randn(1, 32, 24, 24)
    rows = layer_costs(prepare_static(model, [x]), x)
    assert [row["layer"] for row in rows] == ["0", "2"]
    assert all(0 < row["int8_ms"] < row["float_ms"] for row in rows)
    assert rows[0]["int8_ms"] > rows[1]["int8_ms"]


def test_ranges_are_needed():
    from lq.backends.prepare import prepare

    with pytest.raises(ValueError, match=r"layer_costs\(\) needs ranges"):
        layer_costs(prepare(nn.Sequential(nn.Linear(4, 2))), torch.randn(1, 4))
