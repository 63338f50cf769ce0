"""LightningDataModules that the recipes use: digits, Fashion-MNIST, and any folder of images."""

from lq.data.digits import DigitsDataModule
from lq.data.fashion_mnist import FashionMNISTDataModule
from lq.data.image_folder import ImageFolderDataModule

__all__ = ["DigitsDataModule", "FashionMNISTDataModule", "ImageFolderDataModule"]
