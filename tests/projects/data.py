"""Small synthetic data that can be learned in a few epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

TRAIN, VALIDATION = 48, 24


def blobs(count: int, size: int, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images with a bright rectangle.

    Returns:
        images of shape (count, channels, size, size), and the corners of the rectangles (count, 4) as x0, y0, x1, y1.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, channels, size, size, generator=generator)
    low = torch.randint(0, size // 2, (count, 2), generator=generator)
    extent = torch.randint(size // 4, size // 2, (count, 2), generator=generator)
    boxes = torch.cat([low, low + extent], dim=1)
    for image, (x0, y0, x1, y1) in zip(images, boxes.tolist(), strict=True):
        image[:, y0:y1, x0:x1] += 0.7
    return images, boxes.float()


def masks(boxes: Tensor, size: int) -> Tensor:
    """Where the rectangles are: integers of shape (count, size, size)."""
    made = torch.zeros(len(boxes), size, size, dtype=torch.long)
    for mask, (x0, y0, x1, y1) in zip(made, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return made


def striped(count: int, size: int, classes: int = 2, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images whose class is the width of their stripes, in any direction, phase and strength."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    angle, phase, strength = torch.rand(3, count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = x * torch.cos(math.pi * angle) + y * torch.sin(math.pi * angle)
    waves = torch.sin(2 * math.pi * (along / (3.0 * 2 ** labels[:, None, None]) + phase))
    noise = torch.rand(count, channels, size, size, generator=generator)
    return 0.5 * noise + (0.25 + 0.25 * strength * waves)[:, None], labels


class Samples(Dataset[Any]):
    """A list as a Dataset."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def loaders(train: Sequence[Any], validation: Sequence[Any], batch: int = 8, **settings: Any) -> dict[str, Any]:
    """Both loaders, by the names that ``trainer.fit`` has for them."""
    return {
        "train_dataloaders": DataLoader(Samples(train), batch, shuffle=True, drop_last=True, **settings),
        "val_dataloaders": DataLoader(Samples(validation), batch, **settings),
    }
