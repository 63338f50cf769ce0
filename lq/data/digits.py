"""The handwritten digits bundled with scikit-learn."""

from __future__ import annotations

import torch

from lq.checks import check_integer
from lq.data.in_memory import InMemoryDataModule, seeded_split


class DigitsDataModule(InMemoryDataModule):
    """The 1,797 handwritten digits that scikit-learn ships: 1x8x8 images in [0, 1], nothing to download.

    Args:
        batch_size: images a batch.
        val_size: images kept for validation.
        test_size: images kept for the test.
        split_seed: seed of the split; the same seed gives the same three parts on every machine.
        num_workers: worker processes of the loaders; the images are in memory, so 0 is the fastest.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is out of range.
        ModuleNotFoundError: scikit-learn is not installed.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html

    Example:
        >>> data = DigitsDataModule(batch_size=32)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        batch_size: int = 64,
        val_size: int = 360,
        test_size: int = 360,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_integer("val_size", val_size, 200, least=1)
        check_integer("test_size", test_size, 200, least=1)
        if val_size + test_size >= 1797:
            raise ValueError(
                f"val_size + test_size is {val_size + test_size}, but there are only 1797 digits; "
                "keep some for training, for example val_size=360, test_size=360."
            )
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed

    def setup(self, stage: str) -> None:
        """Load the digits once and split them."""
        if self._sets:
            return
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DigitsDataModule needs scikit-learn: pip install 'lightning-qat[demo]'"
            ) from error
        digits = load_digits()
        images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.as_tensor(digits.target, dtype=torch.long)
        train = len(labels) - self.val_size - self.test_size
        parts = seeded_split([train, self.val_size, self.test_size], self.split_seed)
        self._sets = {
            name: (images[part], labels[part]) for name, part in zip(("train", "val", "test"), parts, strict=True)
        }
