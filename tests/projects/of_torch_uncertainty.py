"""The routines of torch-uncertainty."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch_uncertainty.models.classification import resnet
from torch_uncertainty.routines import ClassificationRoutine

from .case import Case, Fit
from .data import TRAIN, VALIDATION, loaders, striped

REQUIREMENTS = ("torch-uncertainty",)

SIZE, CLASSES = 32, 3


def _striped(count: int, seed: int) -> list[Any]:
    return list(zip(*striped(count, SIZE, CLASSES, seed=seed), strict=True))


def classification() -> Fit:
    network = resnet(arch=18, in_channels=3, num_classes=CLASSES, style="cifar")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    routine = ClassificationRoutine(network, CLASSES, nn.CrossEntropyLoss(), optim_recipe=optimizer)
    return Fit(routine, loaders(_striped(TRAIN, 0), _striped(VALIDATION, 1)))


CASES = (Case("ClassificationRoutine with ResNet18", classification, "val/cls/NLL"),)
