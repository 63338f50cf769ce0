"""Data modules whose images all fit in memory: a batch is one indexing, augmented at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lq.checks import check_integer

Batch = tuple[Tensor, Tensor]


def random_crop_flip(
    images: Tensor, padding: int, flip: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Shift every image of a batch by up to `padding` pixels and mirror half of them, without a loop.

    Args:
        images: batch of shape (N, C, H, W); the border that comes in is filled with the image's edge.
        padding: largest shift in pixels, in each direction.
        flip: mirror each image left to right with probability 1/2.
        generator: source of the random numbers; the global one when None.

    Returns:
        A new batch of the same shape and dtype.

    Example:
        >>> images = torch.arange(8.0).reshape(2, 1, 2, 2)
        >>> random_crop_flip(images, padding=0, flip=False).equal(images)
        True
        >>> random_crop_flip(images, padding=1).shape
        torch.Size([2, 1, 2, 2])
    """
    n, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=images.device)
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4, mode="replicate") if padding else images
    index = torch.arange(n, device=images.device).view(n, 1, 1)
    # The two slices around the channel axis put it last: (N, H, W, C).
    return padded[index, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


class _TensorBatches(Dataset[Batch]):
    """Images and labels in memory; a whole batch is fetched by one indexing."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int = 0, flip: bool = False) -> None:
        self.images, self.labels = images, labels
        self.padding, self.flip = padding, flip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        picked = torch.as_tensor(indices)
        images = self.images[picked]
        if self.padding or self.flip:
            images = random_crop_flip(images, self.padding, self.flip)
        return images, self.labels[picked]


def _already_a_batch(batch: Any) -> Any:
    return batch


class InMemoryDataModule(L.LightningDataModule):
    """Common part of the data modules that keep every image in memory.

    A subclass puts images (N, C, H, W) and labels (N,) into `_sets` in its `setup`, under "train", "val" and "test".

    Args:
        batch_size: images in a batch; the last, smaller one of an epoch of training is left out.
        num_workers: processes that fetch batches; 0 fetches them in the process that trains.
        padding: of training images, in pixels; see `random_crop_flip`.
        flip: mirror half of the training images.

    Raises:
        TypeError: a number is no integer.
        ValueError: a number is out of its range.

    Example:
        >>> class Noise(InMemoryDataModule):
        ...     def setup(self, stage):
        ...         self._sets["val"] = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> data = Noise(batch_size=4, num_workers=0)
        >>> data.setup("validate")
        >>> [(tuple(images.shape), labels.tolist()) for images, labels in data.val_dataloader()]
        [((4, 1, 8, 8), [0, 1, 2, 3]), ((1, 1, 8, 8), [4])]
    """

    def __init__(self, batch_size: int, num_workers: int, padding: int = 0, flip: bool = False) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, 64, least=1)
        check_integer("num_workers", num_workers, 4, least=0)
        check_integer("padding", padding, 2, least=0)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.padding, self.flip = padding, flip
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}

    def _loader(self, part: str) -> DataLoader[Batch]:
        training = part == "train"
        images, labels = self._sets[part]
        augment: dict[str, Any] = {"padding": self.padding, "flip": self.flip} if training else {}
        return DataLoader(
            _TensorBatches(images, labels, **augment),
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training and len(labels) > self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_already_a_batch,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled and augmented training batches of (images, labels)."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation batches of (images, labels), in a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches of (images, labels), in a fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test batches again, for `lq predict`."""
        return self._loader("test")


def seeded_split(sizes: Sequence[int], seed: int) -> tuple[Tensor, ...]:
    """Draw disjoint random sets of indices, the same ones for the same seed.

    Args:
        sizes: how many indices each set gets; together they are all indices below the sum.
        seed: of a generator of its own.

    Returns:
        One int64 tensor for each size.

    Example:
        >>> train, val = seeded_split([6, 2], seed=0)
        >>> sorted([*train.tolist(), *val.tolist()])
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> seeded_split([6, 2], seed=0)[1].equal(val)
        True
    """
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    return torch.split(order, list(sizes))
