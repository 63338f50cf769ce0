from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from lq.export.formats.executorch import FILE
from lq.metrics import sqnr
from tests.export.nets import TwoInputs, calibrated, example_of, images, residual, round_trip

pytest.importorskip("executorch")

# What executorch 1.5 itself warns of under torch 2.15.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.GraphModule, Any, dict[str, Any], Path]:
    prepared, directory = residual(), tmp_path_factory.mktemp("executorch")
    return prepared, *round_trip("executorch", prepared, example_of(images(4)), directory), directory


Exported = tuple[fx.GraphModule, Any, dict[str, Any], Path]


@pytest.mark.parametrize("count", [1, 4, 16, 17, 50])
def test_any_batch_size_agrees_with_the_prepared_model(exported: Exported, count: int) -> None:
    prepared, model, _, _ = exported
    with torch.no_grad():
        expected = prepared(images(count))
    got = model(images(count))
    assert got.unique().numel() > 3
    assert sqnr(expected, got) >= 35  # infinite where this was written


def test_every_layer_runs_on_integers_in_one_file(exported: Exported) -> None:
    _, _, info, directory = exported
    assert info["float_layers"] == []
    assert sum(info["int8_layers"].values()) == 7
    assert (info["dynamic_batch"], info["largest_batch"]) == (False, 1)
    assert [file.name for file in directory.iterdir()] == [FILE]


def test_it_runs_in_inference_mode(exported: Exported) -> None:
    prepared, model, _, _ = exported
    with torch.inference_mode():
        x = images(3) + 0
        assert sqnr(prepared(x), model(x)) >= 35


def test_results_stay_when_the_model_is_called_again(exported: Exported) -> None:
    model = exported[1]
    first = model(images(4))
    kept = first.clone()
    model(images(4, seed=9))
    assert torch.equal(first, kept)


class Inverted(nn.Module):
    """What several partitions read: residual blocks around a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.up = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))
        self.depthwise = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=16) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        for up, depthwise, down in zip(self.up, self.depthwise, self.down, strict=True):
            x = x + down(F.relu6(depthwise(F.relu6(up(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_tensors_that_several_layers_read(tmp_path: Path) -> None:
    prepared = calibrated(Inverted(), example_of(images(4)))
    model, info = round_trip("executorch", prepared, example_of(images(4)), tmp_path)
    assert info["float_layers"] == []
    with torch.no_grad():
        assert sqnr(prepared(images(9)), model(images(9))) >= 35


def test_a_single_grey_image_in_channels_last(tmp_path: Path) -> None:
    x = images(4)[:, :1].contiguous(memory_format=torch.channels_last)
    prepared = calibrated(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), example_of(x))
    model, _ = round_trip("executorch", prepared, example_of(x), tmp_path)
    one = x[:1]
    assert one.is_contiguous()
    assert one.stride()[1] == 1, "not the strides that the runtime expects"
    with torch.no_grad():
        assert sqnr(prepared(one), model(one)) >= 35


def test_float_layers_are_named(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantized, self.floating = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.floating(torch.tanh(self.quantized(x)))

    from lq.config.qconfig import QConfig

    example = example_of(images(4))
    prepared = calibrated(Mixed(), example, QConfig(exclude=("floating",)))
    model, info = round_trip("executorch", prepared, example, tmp_path)
    assert sum(info["int8_layers"].values()) == 1
    assert len(info["float_layers"]) == 1
    with torch.no_grad():
        assert sqnr(prepared(images(9)), model(images(9))) >= 35


def test_two_inputs_and_a_dict(tmp_path: Path) -> None:
    example = example_of(images(4), other=images(4, seed=3))
    prepared = calibrated(TwoInputs(), example)
    model, _ = round_trip("executorch", prepared, example, tmp_path)
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        expected = prepared(x, other=y)
    got = model(other=y, image=x)
    assert got.keys() == expected.keys()
    assert sqnr(expected["logits"], got["logits"]) >= 35
