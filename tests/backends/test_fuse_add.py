from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of, prepare
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.conversion.reference import reference
from lq.export.artifact.signature import Signature
from lq.export.exporters import chosen
from lq.metrics import sqnr
from lq.ptq import calibrate


class Block(nn.Module):
    """A residual block whose shortcut is a convolution, one whose is the input, and one that shows what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.shortcut = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.first(x) + self.shortcut(x))
        x = x + self.norm(self.second(x))
        shown = self.third(x)
        return self.head(x + shown + shown.roll(1))


def images(seed: int) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared(qconfig: QConfig | str) -> nn.Module:
    torch.manual_seed(0)
    model = prepare(Block(), qconfig)
    calibrate(model, [images(0), images(1)])
    return model.eval()


def rounded(qconfig: QConfig | str) -> list[str]:
    return [tensor.after for tensor in plan_of(prepared(qconfig)).tensors]


def test_a_convolution_that_is_only_added_is_not_rounded_before() -> None:
    apart, fused = rounded("x86_vnni"), rounded("openvino")
    # Of two convolutions that are added, the kernel of the later one adds; what is read elsewhere is rounded.
    assert [name for name in apart if name not in fused] == ["shortcut", "second"]
    assert [name for name in fused if name not in apart] == []
    assert "third" in fused


def test_it_can_be_switched_on_and_off_in_any_preset() -> None:
    assert rounded(QConfig("openvino", fuse_add=False)) == rounded("x86_vnni")
    assert rounded(QConfig("x86_vnni", fuse_add=True)) == rounded("openvino")


def test_it_survives_being_made_plain() -> None:
    qconfig = QConfig("openvino")
    assert QConfig.from_dict(dataclasses.asdict(qconfig)) == qconfig
    assert QConfig.from_dict(qconfig.to_dict()).resolved_fuse_add


def test_every_lowering_adds_before_it_rounds() -> None:
    model = prepared("openvino")
    x = images(2)
    with torch.no_grad():
        assert sqnr(model(x), reference(model)(x)) > 60
        assert sqnr(model(x), convert(model)(x)) > 60


def test_openvino_computes_it_in_int8_and_agrees(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    x, ratios = images(2), {}
    for preset in ("x86_vnni", "openvino"):
        model = prepared(preset)
        example = ((x,), {})
        info = chosen(["openvino"])[0].export(model, example, tmp_path)
        assert info["float_layers"] == []
        with torch.no_grad():
            expected = model(x)
            run = chosen(["openvino"])[0].exporter.load(tmp_path, Signature.of(model, example, expected), info)
            ratios[preset] = float(sqnr(expected, run(x)))
    assert ratios["openvino"] > ratios["x86_vnni"] + 6, ratios
