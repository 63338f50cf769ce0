"""Denoising with CAREamics."""

from __future__ import annotations

from typing import Any

import torch
from careamics.config import FCNAlgorithmConfig
from careamics.lightning.lightning_module import FCNModule
from torch import Tensor

from .case import Case, Fit
from .data import TRAIN, VALIDATION, blobs, loaders

REQUIREMENTS = ("careamics==0.0.4.2", "setuptools<81")

SIZE = 32

SMALL: dict[str, Any] = {"conv_dims": 2, "depth": 2, "num_channels_init": 16, "in_channels": 1, "num_classes": 1}


def _noisy(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of noisy and clean images."""
    clean, _ = blobs(count, SIZE, channels=1, seed=seed)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return list(zip(clean + 0.2 * noise, clean, strict=True))


def care() -> Fit:
    config = FCNAlgorithmConfig(algorithm="care", loss="mae", model={"architecture": "UNet", **SMALL})
    return Fit(FCNModule(config), loaders(_noisy(TRAIN, 0), _noisy(VALIDATION, 1)))


CASES = (Case("FCNModule with UNet", care, "val_loss"),)
