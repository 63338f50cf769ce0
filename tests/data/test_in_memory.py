import pytest
import torch
from torch.nn import functional as F

from lq.data.in_memory import random_crop_flip, seeded_split


def slow_crop_flip(images, padding, flip, generator):
    """The obvious twin: one image at a time, drawing the same random numbers in the same order."""
    n, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5 if flip else torch.zeros(n, 1, dtype=torch.bool)
    out = []
    for i in range(n):
        padded = F.pad(images[i : i + 1], (padding,) * 4, mode="replicate")[0]
        top, left = int(shifts[0, i]), int(shifts[1, i])
        crop = padded[:, top : top + height, left : left + width]
        out.append(crop.flip(2) if mirrored[i] else crop)
    return torch.stack(out)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, False), (3, True)])
def test_crop_and_flip_equal_their_slow_twin(padding, flip):
    images = torch.rand(16, 3, 7, 5)
    fast = random_crop_flip(images, padding, flip, torch.Generator().manual_seed(1))
    slow = slow_crop_flip(images, padding, flip, torch.Generator().manual_seed(1))
    assert fast.equal(slow)
    assert fast.is_contiguous()


def test_augmentation_changes_images_and_leaves_the_input_alone():
    images = torch.rand(8, 1, 6, 6)
    before = images.clone()
    assert not random_crop_flip(images, padding=2).equal(images)
    assert images.equal(before)


def test_split_is_disjoint_complete_and_the_same_for_the_same_seed():
    first, second = seeded_split([7, 3], seed=4)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    assert first.equal(seeded_split([7, 3], seed=4)[0])
    assert not first.equal(seeded_split([7, 3], seed=5)[0])
