"""The benchmark of single operations, at tiny size; the loops that it compares with compute the same."""

import json

import pytest
import torch

from benchmarks import ops
from lq.config.specs import WeightSpec
from lq.core.functional import affine_qparams
from lq.core.weight import fake_quantize_weight, weight_scale


def test_every_operation_is_measured(tmp_path, capsys):
    file = tmp_path / "ops.json"
    ops.main(["--rounds", "1", "--activation", "2x4x8x8", "--weights", "8x4x3x3", "8x4", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows)
    groups = [row["group"] for row in rows if row["ratio"] == row["q1"] == row["q3"] == 1.0]
    assert groups == list(dict.fromkeys(row["group"] for row in rows))
    assert len(groups) == 1 + 2 * 3
    assert "2x4x8x8, forward + backward" in capsys.readouterr().out


@pytest.fixture
def weight():
    return torch.randn(16, 3, 3, 3)


def test_looped_qparams_are_the_vectorised_ones(weight):
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    for looped, vectorised in zip(
        ops._looped_qparams(low, high), affine_qparams(low, high, -127, 127, True), strict=True
    ):
        assert torch.equal(looped, vectorised)


def test_the_looped_weight_is_the_vectorised_one(weight):
    scale = weight_scale(weight, WeightSpec(-127, 127))
    assert torch.equal(ops._looped_scales(weight), scale.flatten())
    # multiplying by the reciprocal instead of dividing moves a value by an ulp, or by a step at a rounding boundary
    difference = (ops._looped_fake_quantize(weight) - fake_quantize_weight(weight, scale)).abs() / scale
    assert float(difference.max()) < 1.001
    assert float((difference > 1e-4).float().mean()) < 0.01


def test_the_operations_agree_where_they_do_the_same():
    x = torch.rand(2, 4, 8, 8) * 6
    cpu = torch.device("cpu")
    ours, stock = ops._lq_function(cpu)(x), ops._torch_fake_quantize(cpu)(x)
    # half a step at most apart from x, a step at a rounding boundary from each other
    assert float((ours - x).abs().max()) <= 0.5 * 6 / 255 * 1.001
    assert float((ours - stock).abs().max()) <= 6 / 255 * 1.001
