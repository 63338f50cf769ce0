"""Anomaly detection: a student or decoder beside a frozen teacher, and a network that mends images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import timm
import torch
from anomalib.data.dataclasses.torch import ImageBatch, ImageItem
from anomalib.metrics import AUROC, Evaluator
from anomalib.models.image import Draem, ReverseDistillation, Stfpm

from .case import Case, Fit
from .data import blobs, loaders, striped

REQUIREMENTS = ("anomalib",)

SIZE = 64

FINE: dict[str, Any] = {"pre_processor": False, "visualizer": False}


def _normal(count: int, seed: int) -> list[ImageItem]:
    return [ImageItem(image=image, gt_label=torch.tensor(False)) for image in striped(count, SIZE, 1, seed=seed)[0]]


def _mixed(count: int, seed: int) -> list[ImageItem]:
    """Every second one has a bright spot."""
    spots = blobs(count, SIZE // 2, seed=seed)[0]
    items = _normal(count, seed)
    for item, spot in list(zip(items, spots, strict=True))[::2]:
        item.image[:, : SIZE // 2, : SIZE // 2] = spot
        item.gt_label = torch.tensor(True)
    return items


def _detection(make: Callable[..., Any]) -> Fit:
    """Teachers without pretrained weights: nothing is downloaded."""
    evaluator = Evaluator(val_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="image_")])
    with mock.patch.object(timm, "create_model", partial(_untrained, timm.create_model)):
        module = make(evaluator=evaluator, **FINE)
    return Fit(module, loaders(_normal(16, 0), _mixed(16, 1), batch=4, collate_fn=ImageBatch.collate))


def _untrained(create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return create(*args, **{**kwargs, "pretrained": False})


def stfpm() -> Fit:
    return _detection(Stfpm)


def reverse_distillation() -> Fit:
    return _detection(partial(ReverseDistillation, backbone="resnet18"))


def draem() -> Fit:
    return _detection(partial(Draem, dtd_dir=None))


CASES = (
    Case("Stfpm", stfpm, "image_AUROC"),
    Case("ReverseDistillation", reverse_distillation, "image_AUROC"),
    Case("Draem", draem, "image_AUROC", epochs=(1, 2)),
)
