"""Crops of the few real photographs that Python packages ship, for networks with ImageNet weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.checks import check_integer
from lq.console import BatchCounter
from lq.data.in_memory import InMemoryDataModule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN = ("astronaut", "coffee", "flower.jpg", "hubble_deep_field", "motorcycle_left", "retina")
HELD_OUT = ("chelsea", "china.jpg", "rocket")
# Least side of a crop, as a share of the photograph's shorter side. ImageNet is judged on crops of 0.875.
SMALLEST, SMALLEST_HELD_OUT = 0.5, 0.85


class PhotographsDataModule(InMemoryDataModule):
    """Random crops of photographs in scikit-image and scikit-learn, labelled by a network that knows their classes.

    There is no ImageNet without a download; a few photographs do for what quantization needs: real ranges, and a
    training that keeps the network where it was. The names of six things would not: the labels for training are the
    teacher's probabilities (Hinton et al., https://arxiv.org/abs/1503.02531), those for validation its top class.
    Validation crops come from photographs of their own and show most of them, as those do that ImageNet classifiers
    are judged on.

    Args:
        teacher: network with ImageNet weights, images (N, 3, S, S) to logits.
        batch_size: crops a batch.
        crops: for training, from all training photographs together.
        val_crops: for validation and test, which are the same.
        image_size: side of a crop in pixels, after resizing.
        seed: of the crops.
        num_workers: worker processes of the loaders; the crops are in memory, so 0 is the fastest.

    Raises:
        TypeError: a number is no whole one.
        ValueError: a number is out of range.
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.

    Example:
        >>> teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # says which color is the brightest
        >>> data = PhotographsDataModule(teacher, batch_size=2, crops=4, val_crops=2, image_size=32)
        >>> data.setup("fit")
        >>> images, probabilities = next(iter(data.train_dataloader()))
        >>> images.shape, probabilities.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        teacher: nn.Module,
        batch_size: int = 16,
        crops: int = 480,
        val_crops: int = 480,
        image_size: int = 224,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, flip=True)
        for name, value in (("crops", crops), ("val_crops", val_crops), ("image_size", image_size)):
            check_integer(name, value, 224 if name == "image_size" else 480, least=1)
        self.teacher = teacher.eval()
        self.crops, self.val_crops, self.image_size, self.seed = crops, val_crops, image_size, seed

    def setup(self, stage: str) -> None:
        """Cut and label the crops once."""
        if self._sets:
            return
        generator = torch.Generator().manual_seed(self.seed)
        for part, names, count, smallest in (
            ("train", TRAIN, self.crops, SMALLEST),
            ("val", HELD_OUT, self.val_crops, SMALLEST_HELD_OUT),
        ):
            photographs = [load_photograph(name) for name in names]
            images = cut_crops(photographs, count, self.image_size, generator, smallest)
            probabilities = self._probabilities(images)
            self._sets[part] = images, probabilities if part == "train" else probabilities.argmax(1)
        self._sets["test"] = self._sets["val"]

    @torch.no_grad()
    def _probabilities(self, images: Tensor) -> Tensor:
        batches, found = torch.split(images, self.batch_size), []
        with BatchCounter("labelling crops", len(batches)) as counter:
            for batch in batches:
                found.append(self.teacher(batch).softmax(1))
                counter.advance()
        return torch.cat(found)


def load_photograph(name: str) -> Tensor:
    """A photograph of scikit-image, or of scikit-learn if its name ends in ".jpg".

    Args:
        name: as in `skimage.data` ("motorcycle_left" is the left image of its stereo pair), or "china.jpg",
            "flower.jpg".

    Returns:
        float tensor of shape (3, H, W) in [0, 1].

    Raises:
        ModuleNotFoundError: the package is not installed.

    Example:
        >>> load_photograph("flower.jpg").shape
        torch.Size([3, 427, 640])
    """
    try:
        if name.endswith(".jpg"):
            from sklearn.datasets import load_sample_image

            pixels = load_sample_image(name)
        else:
            data: Any = importlib.import_module("skimage.data")
            pixels = data.stereo_motorcycle()[0] if name == "motorcycle_left" else getattr(data, name)()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("PhotographsDataModule needs: pip install scikit-image scikit-learn") from error
    return torch.as_tensor(pixels.copy()).permute(2, 0, 1).float() / 255


def cut_crops(
    photographs: Iterable[Tensor], count: int, size: int, generator: torch.Generator, smallest: float = SMALLEST
) -> Tensor:
    """Cut square crops of random place and size, resize and normalize them.

    Args:
        photographs: tensors of shape (3, H, W) in [0, 1]; each gives as many crops, but for the remainder.
        count: crops in all.
        size: side of a crop in pixels, after resizing.
        generator: source of the random numbers.
        smallest: least side of a crop, as a share of the photograph's shorter side.

    Returns:
        tensor of shape (count, 3, size, size), normalized with ImageNet's mean and standard deviation.

    Example:
        >>> cut_crops([torch.rand(3, 40, 60)], 2, 32, torch.Generator()).shape
        torch.Size([2, 3, 32, 32])
    """
    sources = list(photographs)
    crops = []
    for i in range(count):
        photograph = sources[i % len(sources)]
        height, width = photograph.shape[1:]
        share, top, left = torch.rand(3, generator=generator).tolist()
        side = max(1, round(min(height, width) * (smallest + (1 - smallest) * share)))
        y, x = round(top * (height - side)), round(left * (width - side))
        crop = photograph[None, :, y : y + side, x : x + side]
        crops.append(F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.cat(crops) - mean) / std
