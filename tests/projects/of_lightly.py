"""Self-supervised learning as in lightly's benchmarks, whose module judges the features by their nearest neighbours.

https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.benchmarking import BenchmarkModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .case import Case, Fit
from .data import TRAIN, VALIDATION, Samples, loaders, striped

REQUIREMENTS = ("lightly",)

SIZE, CLASSES = 32, 3


def backbone() -> nn.Module:
    """A ResNet without its head."""
    resnet = torchvision.models.resnet18()
    return nn.Sequential(*list(resnet.children())[:-1])


class SimCLRModel(BenchmarkModule):
    """Contrastive learning."""

    def __init__(self, dataloader_knn: Any, num_classes: int) -> None:
        super().__init__(dataloader_knn, num_classes, knn_k=10)
        self.backbone = backbone()
        self.projection_head = SimCLRProjectionHead(512, 128, 64)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Any:
        x = self.backbone(x).flatten(start_dim=1)
        return self.projection_head(x)

    def training_step(self, batch: Any, batch_index: int) -> Any:
        (x0, x1), _, _ = batch
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log("train_loss_ssl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optim = torch.optim.SGD(self.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)
        return [optim], [torch.optim.lr_scheduler.CosineAnnealingLR(optim, 10)]


class BYOLModel(BenchmarkModule):
    """A network that predicts its own moving average."""

    def __init__(self, dataloader_knn: Any, num_classes: int) -> None:
        super().__init__(dataloader_knn, num_classes, knn_k=10)
        self.backbone = backbone()
        self.projection_head = BYOLProjectionHead(512, 128, 64)
        self.prediction_head = BYOLPredictionHead(64, 128, 64)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Any:
        y = self.backbone(x).flatten(start_dim=1)
        return self.prediction_head(self.projection_head(y))

    def forward_momentum(self, x: Tensor) -> Any:
        y = self.backbone_momentum(x).flatten(start_dim=1)
        return self.projection_head_momentum(y).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        (x0, x1), _, _ = batch
        p0, z0 = self.forward(x0), self.forward_momentum(x0)
        p1, z1 = self.forward(x1), self.forward_momentum(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        self.log("train_loss_ssl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optim = torch.optim.SGD(self.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)
        return [optim], [torch.optim.lr_scheduler.CosineAnnealingLR(optim, 10)]


def self_supervised(model: type[BenchmarkModule]) -> Fit:
    """The module, pairs of views to train on, and labelled images for the neighbours."""
    images, labels = striped(TRAIN, SIZE, CLASSES)
    noise = 0.2 * torch.rand(2, *images.shape)
    pairs = [((a, b), int(y), str(i)) for i, (a, b, y) in enumerate(zip(*(images + noise), labels, strict=True))]
    neighbours = [(x, int(y), "") for x, y in zip(images, labels, strict=True)]
    held_out = [(x, int(y), "") for x, y in zip(*striped(VALIDATION, SIZE, CLASSES, seed=1), strict=True)]
    return Fit(model(DataLoader(Samples(neighbours), 8), CLASSES), loaders(pairs, held_out))


def simclr() -> Fit:
    return self_supervised(SimCLRModel)


def byol() -> Fit:
    return self_supervised(BYOLModel)


PART: dict[str, Any] = {
    "arguments": {"target": "backbone"},
    "reason": "Validation calls the backbone only, which is what is kept after such a training.",
}

CASES = (
    Case("SimCLRModel of BenchmarkModule", simclr, "kNN_accuracy", **PART),
    Case("BYOLModel of BenchmarkModule", byol, "kNN_accuracy", **PART),
)
