"""Small detectors of torchvision, and images with one object each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.detection import IntersectionOverUnion
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from tests.projects.data import blobs

SIZE = 64


def body(channels: tuple[int, ...] = (8, 16, 32)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in zip((3, *channels), channels, strict=False):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    found = nn.Sequential(*layers)
    found.out_channels = channels[-1]  # type: ignore[assignment]
    return found


def anchors(sizes: tuple[int, ...] = (12, 20, 32), ratios: tuple[float, ...] = (0.5, 1.0, 2.0)) -> AnchorGenerator:
    return AnchorGenerator((sizes,), (ratios,))


def retina_net() -> nn.Module:
    return RetinaNet(body(), 2, SIZE, SIZE, anchor_generator=anchors())


def fcos() -> nn.Module:
    return FCOS(body(), 2, SIZE, SIZE, anchor_generator=anchors((8,), (1.0,)))


def ssd() -> nn.Module:
    return SSD(nn.Sequential(body()), DefaultBoxGenerator([[1, 2]], scales=[0.3, 0.5]), (SIZE, SIZE), 2)  # type: ignore[arg-type]


def faster_rcnn() -> nn.Module:
    pooling = MultiScaleRoIAlign(["0"], 5, 2)
    return FasterRCNN(body(), 2, SIZE, SIZE, rpn_anchor_generator=anchors(), box_roi_pool=pooling)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "RetinaNet": retina_net, "FCOS": fcos, "SSD": ssd, "Faster R-CNN": faster_rcnn,
}  # fmt: skip


def photographs(count: int, seed: int = 0) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Images and targets, as torchvision's detectors take them."""
    images, boxes = blobs(count, SIZE, seed=seed)
    label = torch.ones(1, dtype=torch.long)
    return [(image, {"boxes": box[None], "labels": label}) for image, box in zip(images, boxes, strict=True)]


def as_tuples(samples: Any) -> Any:
    """Images and targets of a batch, as torchvision's tutorial collates them."""
    return tuple(zip(*samples, strict=True))


def batches(count: int, size: int, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(photographs(count, seed), batch_size=size, collate_fn=as_tuples)  # type: ignore[arg-type]


class LitDetector(L.LightningModule):
    """Losses in training, the overlap with the objects in validation.

    Args:
        model: the detector.
        gives_targets: whether validation gives it targets, too, which it does not read there.
    """

    def __init__(self, model: nn.Module, gives_targets: bool = False) -> None:
        super().__init__()
        self.model, self.overlap, self.gives_targets = model, IntersectionOverUnion(), gives_targets

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        found = self.model(images, targets) if self.gives_targets else self.model(images)
        best = [{key: value[:1] for key, value in image.items()} for image in found]
        self.overlap.update(best, targets)

    def on_validation_epoch_end(self) -> None:
        self.log("val_iou", self.overlap.compute()["iou"])
        self.overlap.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)
