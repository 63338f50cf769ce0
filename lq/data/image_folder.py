"""Any folder of images, one sub-folder per class, prepared as for ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lq.checks import check_integer
from lq.data.in_memory import Batch
from lq.messages import some_of

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolderDataModule(L.LightningDataModule):
    """Images in `root/train/<class>/` and `root/val/<class>/`, prepared as for ImageNet.

    Args:
        root: folder that holds the two parts.
        batch_size: images a batch.
        image_size: side of the square given to the model, in pixels.
        resize_size: shorter side after resizing, from which evaluation takes its centre crop.
        num_workers: worker processes that decode images.
        train_dir: name of the training part.
        val_dir: name of the part used by validation, test and prediction.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is out of range; in `setup`, if the validation part has a class that the training part lacks.
        FileNotFoundError: in `setup`, if a folder is missing, or holds no folder for a class.

    Source: the evaluation transform of https://pytorch.org/vision/stable/models.html

    Example:
        >>> ImageFolderDataModule("images", image_size=224, resize_size=200)
        Traceback (most recent call last):
            ...
        ValueError: resize_size=200 must be at least 224; write e.g. resize_size=256.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        image_size: int = 224,
        resize_size: int = 256,
        num_workers: int = 2,
        train_dir: str = "train",
        val_dir: str = "val",
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, 64, least=1)
        check_integer("image_size", image_size, 224, least=1)
        check_integer("resize_size", resize_size, max(256, image_size), least=image_size)
        check_integer("num_workers", num_workers, 4, least=0)
        self.root, self.batch_size, self.num_workers = Path(root), batch_size, num_workers
        self.image_size, self.resize_size = image_size, resize_size
        self.train_dir, self.val_dir = train_dir, val_dir
        self._sets: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """List the images of both parts once; the classes are numbered as in the training part."""
        if self._sets:
            return
        for folder in (self.root / self.train_dir, self.root / self.val_dir):
            if not folder.is_dir() or not any(child.is_dir() for child in folder.iterdir()):
                raise FileNotFoundError(
                    f"{folder} must be a folder with one folder of images per class, such as "
                    f"{folder / 'cat' / '1.jpeg'}; set data.init_args.root, train_dir and val_dir to yours."
                )
        try:
            from torchvision import datasets, transforms
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "ImageFolderDataModule needs torchvision: pip install 'lightning-qat[vision]'"
            ) from error
        end = [transforms.ToTensor(), transforms.Normalize(_IMAGENET_MEAN, _IMAGENET_STD)]
        augment = [transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()]
        centre = [transforms.Resize(self.resize_size), transforms.CenterCrop(self.image_size)]
        found = {
            "train": datasets.ImageFolder(str(self.root / self.train_dir), transforms.Compose(augment + end)),
            "val": datasets.ImageFolder(str(self.root / self.val_dir), transforms.Compose(centre + end)),
        }
        _number_alike(found["val"], found["train"].class_to_idx)
        self._sets = found

    def _loader(self, part: str) -> DataLoader[Batch]:
        return DataLoader(
            self._sets[part],
            batch_size=self.batch_size,
            shuffle=part == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled and augmented training batches of (images, labels)."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Centre-cropped validation batches of (images, labels)."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The validation batches again: ImageNet publishes no labels for its test part."""
        return self._loader("val")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The validation batches again, for `lq predict`."""
        return self._loader("val")


def _number_alike(dataset: Any, numbers: Mapping[str, int]) -> None:
    """Give the classes of an ImageFolder, which numbers those that it finds, other numbers."""
    unknown = [name for name in dataset.classes if name not in numbers]
    if unknown:
        raise ValueError(
            f"{dataset.root} has images of {some_of(unknown)}, but the training part has no such class. It has "
            f"{some_of(numbers)}; give both parts the same names of folders."
        )
    dataset.samples = dataset.imgs = [(path, numbers[dataset.classes[label]]) for path, label in dataset.samples]
    dataset.targets = [label for _, label in dataset.samples]
    dataset.classes, dataset.class_to_idx = list(numbers), dict(numbers)
