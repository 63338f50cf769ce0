import shutil

import pytest
import torch

from lq.data import FashionMNISTDataModule, fashion_mnist


def make(root, **arguments):
    data = FashionMNISTDataModule(root=str(root), batch_size=8, val_size=8, **arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def test_sizes_and_normalisation(fashion_folder):
    data = make(fashion_folder, padding=0, flip=False)
    assert [len(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader())] == [40, 8]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    # The generated images are 25 times their label everywhere.
    expected = (labels * 25 / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), expected)


def test_layout_of_torchvision_is_found(fashion_folder, tmp_path):
    shutil.copytree(fashion_folder, tmp_path / "FashionMNIST" / "raw")
    assert len(make(tmp_path).test_dataloader().dataset) == 16


def test_layout_of_debian_is_found(fashion_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", fashion_folder)
    assert len(make(tmp_path).test_dataloader().dataset) == 16


def test_only_training_images_are_augmented(fashion_folder):
    # A gradient, since a uniform image looks the same after any shift.
    data = make(fashion_folder, padding=3)
    for name, (images, labels) in data._sets.items():
        data._sets[name] = (torch.arange(28.0).expand_as(images).clone(), labels)
    assert not next(iter(data.train_dataloader()))[0].equal(data._sets["train"][0][:8])
    assert next(iter(data.val_dataloader()))[0].equal(data._sets["val"][0])


def test_missing_files_name_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    data = FashionMNISTDataModule(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*download: true"):
        data.prepare_data()


def test_validation_part_must_leave_something_to_train_on(fashion_folder):
    data = FashionMNISTDataModule(root=str(fashion_folder), val_size=48)
    with pytest.raises(ValueError, match="only 48 training images"):
        data.setup("fit")


def test_files_that_are_no_pair_are_refused(fashion_folder, tmp_path):
    shutil.copytree(fashion_folder, tmp_path / "mixed")
    folder = tmp_path / "mixed"
    shutil.copy(folder / "t10k-labels-idx1-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match="are not a pair"):
        FashionMNISTDataModule(root=str(folder), val_size=8).setup("fit")
