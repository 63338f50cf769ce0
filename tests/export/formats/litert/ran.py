"""Prepared nets in LiteRT's interpreter, and how many steps their outputs are from the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.config.qconfig import QConfig
from lq.conversion.reference import reference
from lq.export.artifact.signature import Signature
from lq.export.formats.litert import write_float
from lq.export.formats.litert.runtime import interpreted
from tests.export.nets import calibrated, example_of, round_trip

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Ran:
    """A prepared net, its file loaded again, and what the exporter says of it."""

    prepared: fx.GraphModule
    model: Any
    info: dict[str, Any]

    def outputs(self, x: Tensor) -> tuple[Any, Any]:
        """Of the reference and of LiteRT."""
        with torch.no_grad():
            return reference(self.prepared, signed=True)(x), self.model(x)

    def steps(self, x: Tensor) -> int:
        """How many steps of the output the two are apart at most."""
        return steps_apart(*self.outputs(x))


def in_litert(net: nn.Module, x: Tensor, directory: Path, qconfig: QConfig | str = "x86_vnni", **options: Any) -> Ran:
    """A net prepared, calibrated on a batch, and exported."""
    prepared = calibrated(net, example_of(x), qconfig)
    return Ran(prepared, *round_trip("litert", prepared, example_of(x), directory, **options))


class Calls(nn.Module):
    """One function of a tensor, or of two."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.function(x) if y is None else self.function(x, y)


def in_float(function: Callable[..., Tensor], *inputs: Tensor, directory: Path) -> tuple[Tensor, Tensor]:
    """What a function makes of inputs in torch, and written as a float file in LiteRT."""
    model, path = Calls(function), directory / "float.tflite"
    largest = write_float(model, example_of(*inputs), path)
    expected = model(*inputs)
    return expected, interpreted(path, Signature.of(model, example_of(*inputs), expected), 1, largest_batch=largest)(
        *inputs
    )


def steps_apart(expected: Tensor, got: Tensor) -> int:
    """The largest difference in steps of the grid that both lie on."""
    assert got.shape == expected.shape
    levels = expected.unique()
    assert len(levels) > 3, "nothing to compare"
    return int(((got - expected).abs().max() / levels.diff().min()).round())


class Branches(nn.Module):
    """Functions or layers of two images that convolutions return, each with a convolution behind it."""

    def __init__(self, branches: Mapping[str, Function | nn.Module], channels: Mapping[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.branches = branches
        self.layers = nn.ModuleList(b for b in branches.values() if isinstance(b, nn.Module))
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        self.heads = nn.ModuleList(nn.Conv2d(channels.get(name, 8), 4, 1) for name in branches)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        left, right = F.relu6(self.left(x)), self.right(x)
        found = {}
        for (name, branch), head in zip(self.branches.items(), self.heads, strict=True):
            between = F.relu(branch(left)) if isinstance(branch, nn.Module) else branch(left, right)
            found[name] = head(between)
        return found
