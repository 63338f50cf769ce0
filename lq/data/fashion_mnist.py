"""Fashion-MNIST from the files of Debian's package or of torchvision."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lq.checks import check_integer
from lq.data.idx import find_idx, read_idx
from lq.data.in_memory import InMemoryDataModule, seeded_split

#: Where the Debian package `dataset-fashion-mnist` puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FASHION_MNIST_MEAN, _FASHION_MNIST_STD = 0.2860, 0.3530


class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 1x28x28, 10 classes.

    The files are looked for in `root`, in `root/FashionMNIST/raw` (where torchvision puts them), and
    where the Debian package `dataset-fashion-mnist` installs them.

    Args:
        root: folder that holds the four IDX files, or into which they are downloaded.
        batch_size: images a batch.
        val_size: images taken from the 60,000 for validation; the 10,000 stay untouched for the test.
        split_seed: seed of that choice.
        padding: largest random shift of a training image, in pixels.
        flip: mirror half of the training images.
        download: let torchvision download the files when they are found nowhere.
        num_workers: worker processes of the loaders; the images are in memory, so 0 is fine.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is out of range.
        FileNotFoundError: the files are found nowhere and `download` is false.

    Source: Xiao, Rasul, Vollgraf, https://arxiv.org/abs/1708.07747

    Example:
        >>> FashionMNISTDataModule(val_size=0)
        Traceback (most recent call last):
            ...
        ValueError: val_size=0 must be at least 1; write e.g. val_size=5000.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 5000,
        split_seed: int = 0,
        padding: int = 2,
        flip: bool = True,
        download: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, padding, flip)
        check_integer("val_size", val_size, 5000, least=1)
        self.root, self.download = Path(root), download
        self.val_size, self.split_seed = val_size, split_seed

    def prepare_data(self) -> None:
        """Make sure, once per machine, that the files are there."""
        if self._folder() is None and self.download:
            try:
                from torchvision.datasets import FashionMNIST
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("download needs torchvision: pip install 'lightning-qat[vision]'") from error
            FashionMNIST(str(self.root), download=True)
        self._found_folder()

    def setup(self, stage: str) -> None:
        """Read and normalise the images once, and split the training part."""
        if self._sets:
            return
        folder = self._found_folder()
        images, labels = _read_pair(folder, "train")
        if self.val_size >= len(labels):
            raise ValueError(
                f"val_size is {self.val_size}, but {folder} has only {len(labels)} training images; "
                "write a smaller val_size."
            )
        parts = seeded_split([len(labels) - self.val_size, self.val_size], self.split_seed)
        self._sets = {name: (images[p], labels[p]) for name, p in zip(("train", "val"), parts, strict=True)}
        self._sets["test"] = _read_pair(folder, "test")

    def _folder(self) -> Path | None:
        candidates = (self.root, self.root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST)
        names = [name for pair in _IDX_NAMES.values() for name in pair]
        return next((c for c in candidates if all(find_idx(c, name) for name in names)), None)

    def _found_folder(self) -> Path:
        folder = self._folder()
        if folder is None:
            raise FileNotFoundError(
                f"no Fashion-MNIST files in {self.root}, {self.root / 'FashionMNIST' / 'raw'} or "
                f"{DEBIAN_FASHION_MNIST}: run `apt-get install dataset-fashion-mnist`, or write "
                "`download: true` (on the command line: --data.init_args.download=true)."
            )
        return folder


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    image_file, label_file = (find_idx(folder, name) for name in _IDX_NAMES[part])
    assert image_file is not None
    assert label_file is not None
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise ValueError(
            f"{image_file} has shape {tuple(images.shape)} and {label_file} has {tuple(labels.shape)}; "
            "expected (N, H, W) and (N,): the files are not a pair, fetch them again."
        )
    normalised = (images.unsqueeze(1).float() / 255 - _FASHION_MNIST_MEAN) / _FASHION_MNIST_STD
    return normalised, labels.long()
