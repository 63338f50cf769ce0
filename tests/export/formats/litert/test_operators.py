from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.export.artifact.signature import Signature
from lq.export.formats.litert import write_float
from lq.export.formats.litert.call import UnsupportedError
from lq.export.formats.litert.runtime import interpreted
from tests.export.formats.litert.ran import Branches, Calls, Function, Ran, in_litert, steps_apart
from tests.export.nets import images

pytest.importorskip("ai_edge_litert")

LAYERS: dict[str, nn.Module] = {
    "same padding": nn.Conv2d(8, 8, 3, padding="same", dilation=2),
    "stride": nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "uneven kernel": nn.Conv2d(8, 8, (3, 5), padding=(0, 2)),
    "no bias": nn.Conv2d(8, 8, 2, stride=2, bias=False),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "depthwise, two each": nn.Conv2d(8, 16, 3, stride=2, groups=8),
    "grouped": nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "dilated depthwise": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "transposed": nn.ConvTranspose2d(8, 8, 2, stride=2),
    "transposed, cut": nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1),
    "transposed, output padding": nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped and dilated": nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4, dilation=2),
}

# Rounded once, as the reference does.
EXACT: dict[str, Function] = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "max pool, padded": lambda x, y: F.max_pool2d(y, 3, 2, 1),
    "max pool, rounded up": lambda x, y: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x, y: F.avg_pool2d(y, 2),
    "average pool, padded": lambda x, y: F.avg_pool2d(y, 3, 2, 1),
    "adaptive pool": lambda x, y: F.adaptive_avg_pool2d(y, 2),
    "global pool": lambda x, y: F.adaptive_avg_pool2d(y, 1),
    "mean": lambda x, y: y.mean((2, 3), keepdim=True),
    "nearest": lambda x, y: F.interpolate(y, scale_factor=2),
    "nearest, to a size": lambda x, y: F.interpolate(y, size=(5, 13)),
    "nearest, to fewer pixels": lambda x, y: F.interpolate(y, size=(3, 5)),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "clamp, beyond the grid": lambda x, y: y.clamp(0.9, 0.1),
    "pad": lambda x, y: F.pad(y, (1, 2, 0, 1)),
    "pad below a ReLU": lambda x, y: F.pad(x, (1, 2, 0, 1), value=-2.0),
    "reflect": lambda x, y: F.pad(y, (1, 2, 2, 1), mode="reflect"),
    "chunk": lambda x, y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "slice": lambda x, y: y[:, 2:6, ::2, 1:],
    "shuffle": lambda x, y: y.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8),
    "roll": lambda x, y: y.roll((1, -2), (2, 3)),
    "gelu": lambda x, y: F.gelu(y),
    "the last ones": lambda x, y: y.narrow(2, -3, 2),
    "places": lambda x, y: y[:, [5, -1, 0, 2, 2, 1, 4, 3]],
}

# LiteRT computes these in fixed point, or rounds on a grid of its own in between.
NEAR: dict[str, Function] = {
    "leaky relu": lambda x, y: F.leaky_relu(y),
    "hardswish": lambda x, y: F.hardswish(y),
    "hardsigmoid": lambda x, y: F.hardsigmoid(y),
    "sigmoid": lambda x, y: torch.sigmoid(y),
    "tanh": lambda x, y: torch.tanh(y),
    "silu": lambda x, y: F.silu(y),
    "bilinear": lambda x, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda x, y: F.interpolate(y, size=(5, 13), mode="bilinear", align_corners=True),
}

# In float, of operators that LiteRT has.
FLOATING: dict[str, Function | nn.Module] = {
    "elu": lambda x, y: F.elu(y),
    "elu, steeper": lambda x, y: F.elu(y, 0.5),
    "selu": lambda x, y: F.selu(y),
    "celu": lambda x, y: F.celu(y, 0.7),
    "softplus": lambda x, y: F.softplus(8 * y, beta=2),
    "softplus, straight above": lambda x, y: F.softplus(4 * y, beta=2, threshold=1),
    "mish": lambda x, y: F.mish(y),
    "log sigmoid": lambda x, y: F.logsigmoid(y),
    "sum": lambda x, y: y.sum((1, 3), keepdim=True).expand(-1, 8, -1, 8),
    "maximum": lambda x, y: y - y.amax(1, keepdim=True),
    "minimum": lambda x, y: y - y.amin((2, 3), keepdim=True),
    "maximum with its place": lambda x, y: y - y.max(-1, keepdim=True)[0],
    "minimum with its place": lambda x, y: y - torch.min(y, 1).values.unsqueeze(1),
    "normalize": lambda x, y: F.normalize(y, dim=1),
    "group norm": nn.GroupNorm(2, 8),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "comparisons": lambda x, y: torch.where((y > 0.1) & ~(x >= 0.2) | (x < -0.3), y, x),
    "equal": lambda x, y: torch.where((y != x).logical_and(y <= 0.3), y, 2 * x),
    "sum of multiples": lambda x, y: torch.add(x, y, alpha=0.5),
    "difference of multiples": lambda x, y: torch.sub(x, y, alpha=3),
    "whole quotients": lambda x, y: torch.div(y, 0.3, rounding_mode="floor"),
    "log softmax": lambda x, y: F.log_softmax(y, 1),
    "count": lambda x, y: y * (y > 0).sum(1, keepdim=True),
    "running sum": lambda x, y: (y - 0.1).cumsum(2),
    "running count": lambda x, y: y * ((y > 0).int().cumsum(3) + 1) * (x > 0),
    "places of each row": lambda x, y: y.gather(3, (x > 0).long() + 2),
    "arithmetic of integers": lambda x, y: y * (8 * x).int().clamp(1, 5) - (4 * y).long() ** 2 + (2 * x).int().neg(),
    "small integers": lambda x, y: (8 * y).to(torch.int8).float() * (8 * x).to(torch.uint8),
    "elu, flat": lambda x, y: F.elu(y, 0.0),
    "average pool, rounded up": lambda x, y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
    "average pool, padded and rounded up": lambda x, y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
    "average pool, padding not counted": lambda x, y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "average pool, its own divisor": lambda x, y: F.avg_pool2d(y, 2, divisor_override=3),
    "instance norm, trained": nn.InstanceNorm2d(8, track_running_stats=True),
}


def check_but_for_ties(expected: Tensor, got: Tensor) -> None:
    """Two arithmetics round single values that lie next to a tie to different sides."""
    assert steps_apart(expected, got) <= 1
    assert (got - expected).abs().gt(1e-6).float().mean() <= 0.005


CHANNELS = {"depthwise, two each": 16, "grouped": 12, "cat": 16, "slice": 4}


def exported(branches: Mapping[str, Any], factory: pytest.TempPathFactory, **options: Any) -> Ran:
    return in_litert(Branches(branches, CHANNELS), images(4), factory.mktemp("litert"), **options)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return exported(LAYERS, tmp_path_factory)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return exported(EXACT, tmp_path_factory)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return exported(NEAR, tmp_path_factory)


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return exported(FLOATING, tmp_path_factory)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_integers_of_the_reference(name: str, layers: Ran) -> None:
    expected, got = layers.outputs(images(16))
    check_but_for_ties(expected[name], got[name])


@pytest.mark.parametrize("name", EXACT)
def test_operators_compute_the_integers_of_the_reference(name: str, exact: Ran) -> None:
    expected, got = exact.outputs(images(16))
    check_but_for_ties(expected[name], got[name])


@pytest.mark.parametrize("name", NEAR)
def test_functions_come_near(name: str, near: Ran) -> None:
    expected, got = near.outputs(images(16))
    # The head adds up eight channels, each of which may be a step off.
    assert steps_apart(expected[name], got[name]) <= 4


@pytest.mark.parametrize("name", FLOATING)
def test_functions_in_float_are_those_of_torch(name: str, floating: Ran) -> None:
    expected, got = floating.outputs(images(16))
    check_but_for_ties(expected[name], got[name])


def test_all_of_them_are_on_integers(layers: Ran, exact: Ran, near: Ran) -> None:
    for ran in (layers, exact, near):
        assert ran.info["float_layers"] == []
        assert ran.info["float_operators"] == []


def test_only_the_ends_and_a_shuffle_are_transposed(layers: Ran, exact: Ran, near: Ran) -> None:
    assert layers.info["transposes"] == 1 + len(LAYERS)
    assert exact.info["transposes"] == 1 + len(EXACT) + 1 - 2, "two outputs have one pixel, which is no transpose"
    assert near.info["transposes"] == 1 + len(NEAR)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "truncated": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), "rounding_mode='trunc'"),
    "places": (lambda x: x.max(-1)[1], "no operator for argmax"),
    "bounds": (lambda x: torch.clamp(x, x.abs() * 0.1, torch.tensor(1.0)), "clamps by a tensor"),
    "nearest": (lambda x: F.interpolate(x, scale_factor=1.3), r"8 pixels by 1.3 to 10.*recompute_scale_factor=True"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=0.4, mode="bilinear"), "8 pixels by 0.4 to 3"),
}


@pytest.mark.parametrize(("function", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_litert_computes_otherwise_is_refused(
    tmp_path: Path, function: Callable[[Tensor], Tensor], complaint: str
) -> None:
    with pytest.raises(UnsupportedError, match=complaint):
        write_float(Calls(function), ((images(2),), {}), tmp_path / "float.tflite")


@pytest.mark.parametrize("function", [torch.max, torch.min])
def test_the_largest_of_all_is_a_number(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model, x = Calls(function), images(2)
    write_float(model, ((x,), {}), tmp_path / "float.tflite")
    signature = Signature.of(model, ((x,), {}), model(x))
    assert torch.equal(interpreted(tmp_path / "float.tflite", signature, 1)(x), model(x))


class PaddedSequence(nn.Module):
    """What is around the result of a ReLU lies below it, and another layer reads that result as it is."""

    def __init__(self, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.left, self.right = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 5, 1), nn.Conv1d(4, 5, 1)
        self.value = value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.layer(x))
        return self.left(x), self.right(F.pad(x, (1, 2), value=self.value))


@pytest.mark.parametrize("value", [-2.0, -0.5, 9.0])
def test_what_is_padded_may_lie_beyond_the_tensor(value: float, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    ran = in_litert(PaddedSequence(value), x, tmp_path)
    for expected, got in zip(*ran.outputs(x), strict=True):
        check_but_for_ties(expected, got)
    assert ran.info["float_operators"] == []


def test_a_padding_that_nothing_rounds_is_exact(tmp_path: Path) -> None:
    x = images(2)
    ran = in_litert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConstantPad2d(1, -2.0)), x, tmp_path, "litert")
    assert (ran.model(x)[:, :, 0] == -2).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_counts_in_averages_in_float(tmp_path: Path, stride: int) -> None:
    model, x = nn.AvgPool2d(3, stride, 1), images(2)
    largest = write_float(model, ((x,), {}), tmp_path / "float.tflite")
    signature = Signature.of(model, ((x,), {}), model(x))
    got = interpreted(tmp_path / "float.tflite", signature, 1, largest_batch=largest)(x)
    torch.testing.assert_close(got, model(x))
