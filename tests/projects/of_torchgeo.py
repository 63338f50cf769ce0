"""The trainers of torchgeo: a LightningModule for each kind of task."""

from __future__ import annotations

from typing import Any

import torch
from torchgeo.trainers import ClassificationTask, ObjectDetectionTask, RegressionTask, SemanticSegmentationTask

from .case import Case, Fit
from .data import TRAIN, VALIDATION, blobs, loaders, masks, striped

REQUIREMENTS = ("torchgeo", "pycocotools", "requests")

SIZE, CLASSES = 32, 3


def _striped(count: int, seed: int) -> list[dict[str, Any]]:
    images, labels = striped(count, SIZE, CLASSES, seed=seed)
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


def _covered(count: int, seed: int) -> list[dict[str, Any]]:
    images, boxes = blobs(count, SIZE, seed=seed)
    return [{"image": image, "mask": mask} for image, mask in zip(images, masks(boxes, SIZE), strict=True)]


def _measured(count: int, seed: int) -> list[dict[str, Any]]:
    images, boxes = blobs(count, SIZE, seed=seed)
    width = (boxes[:, 2] - boxes[:, 0]) / SIZE
    return [{"image": image, "label": value} for image, value in zip(images, width, strict=True)]


def _boxed(count: int, seed: int) -> list[dict[str, Any]]:
    images, boxes = blobs(count, 2 * SIZE, seed=seed)
    label = torch.ones(1, dtype=torch.long)
    return [{"image": image, "bbox_xyxy": box[None], "label": label} for image, box in zip(images, boxes, strict=True)]


def classification() -> Fit:
    task = ClassificationTask("resnet18", weights=None, num_classes=CLASSES)
    return Fit(task, loaders(_striped(TRAIN, 0), _striped(VALIDATION, 1)))


def segmentation() -> Fit:
    task = SemanticSegmentationTask("unet", "resnet18", weights=None, num_classes=2)
    return Fit(task, loaders(_covered(TRAIN, 0), _covered(VALIDATION, 1)))


def regression() -> Fit:
    return Fit(RegressionTask("resnet18", weights=None), loaders(_measured(TRAIN, 0), _measured(VALIDATION, 1)))


def detection() -> Fit:
    task = ObjectDetectionTask("faster-rcnn", "resnet18", weights=None, num_classes=2)
    return Fit(task, loaders(_boxed(8, 0), _boxed(4, 1), batch=4))


CASES = (
    Case("ClassificationTask", classification, "val_OverallAccuracy"),
    Case("SemanticSegmentationTask", segmentation, "val_MulticlassJaccardIndex"),
    Case("RegressionTask", regression, "val_RMSE"),
    Case(
        "ObjectDetectionTask",
        detection,
        "val_map_50",
        epochs=(1, 2),
        note="After so few images a detector finds nothing: SQNR and gate say more than its figure.",
    ),
)
