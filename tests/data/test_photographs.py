from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq.data import PhotographsDataModule
from lq.data.photographs import HELD_OUT, TRAIN, cut_crops, load_photograph

pytest.importorskip("skimage")


class Brightness(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3))
        return torch.stack([-bright, bright], dim=1)


def test_photographs_are_colour_images_and_none_is_in_both_parts() -> None:
    for name in (*TRAIN, *HELD_OUT):
        photograph = load_photograph(name)
        assert photograph.shape[0] == 3
        assert min(photograph.shape[1:]) >= 300
        assert 0 <= photograph.min() < photograph.max() <= 1
    assert not set(TRAIN) & set(HELD_OUT)


def test_crops_are_labelled_by_the_teacher_and_the_same_for_the_same_seed() -> None:
    parts = []
    for _ in range(2):
        data = PhotographsDataModule(Brightness(), batch_size=4, crops=12, val_crops=6, image_size=32)
        data.setup("fit")
        (x, y), *rest = list(data.val_dataloader())
        assert x.shape == (4, 3, 32, 32)
        assert torch.equal(y, Brightness()(x).argmax(1))
        parts.append(torch.cat([x, *(more for more, _ in rest)]))
        taught = torch.cat([labels for _, labels in data.train_dataloader()])
        assert taught.shape == (12, Brightness()(x).shape[1])
        assert torch.allclose(taught.sum(1), torch.ones(12))
    assert torch.equal(*parts)
    assert len(parts[0].flatten(1).unique(dim=0)) == 6


def test_crops_lie_inside_and_are_normalized() -> None:
    ones = torch.ones(3, 20, 30)
    crops = cut_crops([ones], 5, 16, torch.Generator().manual_seed(0))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(crops, expected.view(1, 3, 1, 1).expand_as(crops), atol=1e-5)


@pytest.mark.parametrize("name", ["crops", "val_crops", "image_size", "batch_size"])
def test_bad_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        PhotographsDataModule(Brightness(), **{name: 0})
