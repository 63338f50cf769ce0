import shutil

import pytest
import torch

from lq.data import ImageFolderDataModule

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_images_are_cropped_and_normalised(image_folder):
    data = ImageFolderDataModule(str(image_folder), batch_size=4, image_size=16, resize_size=20, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1]
    red = (torch.tensor([1.0, 0.0, 0.0]) - MEAN) / STD
    torch.testing.assert_close(images[-1], red.view(3, 1, 1).expand(3, 16, 16))
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 16, 16)


def test_test_and_prediction_read_the_validation_part(image_folder):
    data = ImageFolderDataModule(str(image_folder), batch_size=4, num_workers=0)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == len(data.predict_dataloader().dataset) == 4


def test_missing_folder_is_named(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match=r"train must be a folder with one folder of images per class"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match="nothing must be a folder"):
        ImageFolderDataModule(str(image_folder), val_dir="nothing").setup("fit")


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="resize_size=100 must be at least 224"):
        ImageFolderDataModule("x", resize_size=100)


def test_classes_have_the_numbers_of_the_training_part(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val" / "green")
    data = ImageFolderDataModule(str(tmp_path / "images"), batch_size=2, num_workers=0)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))[1].tolist() == [1, 1], "red, which alone would be 0"
    (tmp_path / "images" / "val" / "red").rename(tmp_path / "images" / "val" / "rot")
    data = ImageFolderDataModule(str(tmp_path / "images"))
    for _ in range(2):  # the second time, too
        with pytest.raises(ValueError, match=r"val has images of rot, but the .* has green, red; give both parts"):
            data.setup("fit")
