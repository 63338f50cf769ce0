"""Detectors of torchvision in a LightningModule that a user writes around them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, ssdlite320_mobilenet_v3_large

from .case import Case, Fit
from .data import blobs, loaders

REQUIREMENTS = ("torchvision", "pycocotools")


class Detector(L.LightningModule):
    """Losses in training, mean average precision in validation, as in torchvision's tutorial on finetuning."""

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.val_map = MeanAveragePrecision(box_format="xyxy")

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return self.model(images, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self(images, targets)
        self.log_dict({f"train_{name}": value for name, value in losses.items()}, batch_size=len(images))
        return sum(losses.values())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self.val_map.update(self(images), targets)

    def on_validation_epoch_end(self) -> None:
        self.log("val_map_50", self.val_map.compute()["map_50"])
        self.val_map.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def as_lists(samples: Any) -> Any:
    """Images and targets of a batch, which may differ in size."""
    return tuple(map(list, zip(*samples, strict=True)))


def photographs(count: int, size: int, seed: int) -> list[Any]:
    """Images with one object each."""
    images, boxes = blobs(count, size, seed=seed)
    return [
        (image, {"boxes": box[None], "labels": torch.ones(1, dtype=torch.long)})
        for image, box in zip(images, boxes, strict=True)
    ]


def detection(model: nn.Module, size: int) -> Fit:
    """The module and one object an image."""
    data = loaders(photographs(32, size, 0), photographs(8, size, 1), batch=4, collate_fn=as_lists)
    return Fit(Detector(model), data)


def ssdlite() -> Fit:
    return detection(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2), 320)


def faster_rcnn() -> Fit:
    sizes = {"min_size": 128, "max_size": 128}
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=2, **sizes)
    return detection(model, 128)


NOTE = "After so few images a detector finds little: SQNR and gate say more than its figure."

CASES = (
    Case("SSDLite320", ssdlite, "val_map_50", note=NOTE),
    # Untrained, its scores are all alike, and the choice among a hundred boxes is one of noise.
    Case("FasterRCNN", faster_rcnn, "val_map_50", epochs=(30, 4), note=NOTE),
)
