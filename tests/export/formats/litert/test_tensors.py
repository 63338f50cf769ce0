"""Dimensions that are split, joined, named anew and moved, in LiteRT as in torch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lq.export.formats.litert.file import Size
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import Tensors, Value

pytest.importorskip("ai_edge_litert")

BATCH = Size(1, True)


def image(net: Tensors, channels: int = 6, height: int = 4, width: int = 5) -> Value:
    """An image with its channels last."""
    lying = net.new("image", [BATCH, Size(height), Size(width), Size(channels)])
    return Value(lying, CHANNELS_LAST[4])


def kinds(net: Tensors) -> list[str]:
    return [operator.kind for operator in net.file.operators]


def test_tokens_of_an_image_are_no_transpose() -> None:
    net = Tensors()
    tokens = net.permute(net.reshape(image(net), (BATCH, Size(6), Size(20))), (0, 2, 1))
    assert net.plain(tokens).order == (0, 1, 2)
    assert net.shape(tokens) == (BATCH, Size(20), Size(6))
    assert kinds(net) == ["RESHAPE"]


def test_groups_of_channels_shuffled_are_one_transpose() -> None:
    net = Tensors()
    groups = net.reshape(image(net), (BATCH, Size(2), Size(3), Size(4), Size(5)))
    shuffled = net.reshape(net.permute(groups, (0, 2, 1, 3, 4)), (BATCH, Size(6), Size(4), Size(5)))
    assert net.channels_last(shuffled).order == CHANNELS_LAST[4]
    assert kinds(net).count("TRANSPOSE") == 1


def test_a_flattened_image_waits_for_who_asks() -> None:
    net = Tensors()
    flat = net.reshape(image(net), (BATCH, Size(120)))
    assert kinds(net) == []
    assert net.plain(flat).shape is None
    assert kinds(net) == ["TRANSPOSE", "RESHAPE"]
    net.plain(flat)
    assert kinds(net) == ["TRANSPOSE", "RESHAPE"], "written once"


def test_dimensions_of_one_element_change_places_without_a_transpose() -> None:
    net = Tensors()
    assert net.plain(image(net, channels=1)).order == (0, 1, 2, 3)
    assert kinds(net) == ["RESHAPE"]


class Moves(nn.Module):
    """Random moves of a tensor, one for each seed."""

    def __init__(self, seeds: int) -> None:
        super().__init__()
        self.seeds = seeds

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for seed in range(self.seeds):
            chance, y = random.Random(seed), x * 2
            for _ in range(5):
                y = y.permute(0, *chance.sample(range(1, y.dim()), y.dim() - 1))
                cut = chance.randrange(1, y.dim())
                size = int(y.shape[cut])
                if y.dim() < 5 and size % 2 == 0:
                    y = y.unflatten(cut, (2, size // 2))
                elif cut + 1 < y.dim():
                    y = y.flatten(cut, cut + 1)
                y = y + 1
            found.append(y)
        return found


def test_random_moves(tmp_path: Path) -> None:
    from lq.export.artifact.signature import Signature
    from lq.export.formats.litert import write_float
    from lq.export.formats.litert.runtime import interpreted

    moves, x = Moves(24), torch.randn(2, 6, 4, 8)
    largest = write_float(moves, ((x,), {}), tmp_path / "moves.tflite")
    model = interpreted(tmp_path / "moves.tflite", Signature.of(moves, ((x,), {}), moves(x)), 1, largest_batch=largest)
    assert largest is None
    for x in (torch.randn(3, 6, 4, 8), torch.randn(1, 6, 4, 8)):
        for got, expected in zip(model(x), moves(x), strict=True):
            assert torch.equal(got, expected)
