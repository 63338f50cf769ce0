import pytest
import torch

from lq.data import DigitsDataModule


def test_parts_are_disjoint_scaled_and_labelled():
    data = DigitsDataModule(batch_size=2000)
    data.setup("fit")
    parts = [next(iter(loader())) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert [len(labels) for _, labels in parts] == [1077, 360, 360]
    images = torch.cat([images for images, _ in parts])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert torch.cat([labels for _, labels in parts]).unique().tolist() == list(range(10))


def test_split_does_not_depend_on_the_global_seed():
    def validation(seed):
        torch.manual_seed(seed)
        data = DigitsDataModule(batch_size=360)
        data.setup("validate")
        return next(iter(data.val_dataloader()))[0]

    assert validation(0).equal(validation(1))


def test_training_is_shuffled_and_evaluation_is_not():
    data = DigitsDataModule(batch_size=64)
    data.setup("fit")
    assert not next(iter(data.train_dataloader()))[0].equal(next(iter(data.train_dataloader()))[0])
    assert next(iter(data.val_dataloader()))[0].equal(next(iter(data.val_dataloader()))[0])


def test_workers_give_the_same_batches():
    here, there = DigitsDataModule(num_workers=0), DigitsDataModule(num_workers=1)
    for data in (here, there):
        data.setup("validate")
    for ours, theirs in zip(here.val_dataloader(), there.val_dataloader(), strict=True):
        assert ours[0].equal(theirs[0])
        assert ours[1].equal(theirs[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 1797}, "only 1797 digits; keep some for training"),
        ({"val_size": 0}, "val_size=0 must be at least 1"),
        ({"test_size": 0}, "test_size=0 must be"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"num_workers": -1}, "num_workers=-1 must be at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)
