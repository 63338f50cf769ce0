"""Every exporter takes more than plain convolutional nets: attention, channel shuffles, feature pyramids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lq.backends.prepare import plan_of
from lq.export.parity.rounding import rounding_noise
from lq.metrics import main_tensor, sqnr
from tests.export.nets import calibrated, example_of, round_trip

torchvision = pytest.importorskip("torchvision")


def vision_transformer() -> nn.Module:
    vit: nn.Module = torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    nn.init.normal_(vit.heads.head.weight)  # torchvision's is zero
    return vit


def shuffle_net() -> nn.Module:
    net: nn.Module = torchvision.models.ShuffleNetV2([2, 2, 2], [16, 24, 32, 48, 64], num_classes=10)
    return net


class FeaturePyramid(nn.Module):
    """The part of a detector that is quantized: features of several sizes, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deeper = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.pyramid = torchvision.ops.FeaturePyramidNetwork([8, 16], 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shallow = torch.relu(self.stem(x))
        deep = torch.relu(self.deeper(shallow))
        features: dict[str, Tensor] = self.pyramid({"shallow": shallow, "deep": deep})
        return features


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("exporter", ["torch", "onnx", "openvino", "pt2"])
@pytest.mark.parametrize("build", [vision_transformer, shuffle_net, FeaturePyramid])
def test_what_is_loaded_computes_what_was_trained(
    build: Callable[[], nn.Module], exporter: str, tmp_path: Path
) -> None:
    if exporter in ("onnx", "openvino"):
        pytest.importorskip("onnxruntime" if exporter == "onnx" else exporter)
    torch.manual_seed(0)
    example = example_of(images(8, 0))
    prepared = calibrated(build(), example, "openvino" if exporter == "openvino" else "portable")
    assert plan_of(prepared).quantized
    model: Any = round_trip(exporter, prepared, example, tmp_path)[0]
    call = example_of(images(4, 1))
    with torch.no_grad():
        expected, got = prepared(*call[0]), model(*call[0])
        noise = rounding_noise(prepared, [call], [main_tensor(expected)])
    assert noise is not None
    for a, b in zip(tree_leaves(expected), tree_leaves(got), strict=True):
        assert sqnr(a, b) > min(35.0, noise.sqnr_db - 6)
