"""LightningDataModules that the recipes use: digits, Fashion-MNIST, photographs, and any folder of images."""

from lq.data.digits import DigitsDataModule
from lq.data.fashion_mnist import FashionMNISTDataModule
from lq.data.image_folder import ImageFolderDataModule
from lq.data.photographs import PhotographsDataModule

__all__ = ["DigitsDataModule", "FashionMNISTDataModule", "ImageFolderDataModule", "PhotographsDataModule"]
