"""Anomaly detection: a student or decoder beside a frozen teacher, and a network that mends images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from anomalib.data.dataclasses.torch import ImageBatch, ImageItem
from anomalib.metrics import AUROC, Evaluator
from anomalib.models.image import Draem, ReverseDistillation, Stfpm
from torchvision.utils import save_image

from .case import Case, Fit
from .data import blobs, loaders, striped

REQUIREMENTS = ("anomalib",)

SIZE = 64

FINE: dict[str, Any] = {"pre_processor": False, "visualizer": False}


def _normal(count: int, size: int, seed: int) -> list[ImageItem]:
    return [ImageItem(image=image, gt_label=torch.tensor(False)) for image in striped(count, size, 1, seed=seed)[0]]


def _mixed(count: int, size: int, seed: int) -> list[ImageItem]:
    """Every second one has a bright spot."""
    spots = blobs(count, size // 2, seed=seed)[0]
    items = _normal(count, size, seed)
    for item, spot in list(zip(items, spots, strict=True))[::2]:
        item.image[:, : size // 2, : size // 2] = spot
        item.gt_label = torch.tensor(True)
    return items


def _detection(make: Callable[..., Any], count: int = 16, size: int = SIZE, **settings: Any) -> Fit:
    """Teachers without pretrained weights: nothing is downloaded."""
    evaluator = Evaluator(val_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="image_")])
    with mock.patch.object(timm, "create_model", partial(_untrained, timm.create_model)):
        module = make(evaluator=evaluator, **{**FINE, **settings})
    return Fit(module, loaders(_normal(count, size, 0), _mixed(count, size, 1), batch=4, collate_fn=ImageBatch.collate))


def _untrained(create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return create(*args, **{**kwargs, "pretrained": False})


def stfpm() -> Fit:
    return _detection(Stfpm)


def reverse_distillation() -> Fit:
    sized = ReverseDistillation.configure_pre_processor(image_size=(SIZE, SIZE))
    return _detection(partial(ReverseDistillation, backbone="resnet18"), pre_processor=sized)


def draem() -> Fit:
    return _detection(partial(Draem, dtd_dir=_textures()), count=8, size=32)  # of 97 million parameters


def _textures() -> Path:
    """Pictures to make anomalies of, in place of a data set that would be downloaded; beside the environment."""
    folder = Path("textures").absolute()
    folder.mkdir(exist_ok=True)
    for index, picture in enumerate(striped(4, SIZE, 2)[0]):
        save_image(picture, folder / f"{index}.png")
    return folder


CASES = (
    Case("Stfpm", stfpm, "image_AUROC"),
    Case("ReverseDistillation", reverse_distillation, "image_AUROC"),
    Case("Draem", draem, "image_AUROC", epochs=(1, 2)),
)
