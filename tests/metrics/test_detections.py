"""Detections of two models, compared with values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lq.metrics.accumulated import DetectionAgreement
from lq.metrics.comparison import ModelComparison
from lq.metrics.detections import (
    Detections,
    _intersection_over_union,
    comparable,
    detection_agreement,
    detections_in,
    mismatch,
)


def image(*rows: tuple[float, float, float, float, float, int]) -> dict[str, Tensor]:
    """From rows of a box, its score and its label."""
    table = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


A = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # IoU of exactly 0.5 with A
LESS = (0.0, 0.0, 10.0, 4.9)
FAR = (50.0, 50.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("expected", "got", "agreement"),
    [
        ([], [], 1.0),
        ([(*A, 0.8, 1)], [(*A, 0.8, 1)], 1.0),
        ([(*A, 0.8, 1)], [], 0.0),
        ([], [(*A, 0.8, 1)], 0.0),
        ([(*A, 0.8, 1)], [(*A, 0.8, 2)], 0.0),
        ([(*A, 0.8, 1)], [(*HALF, 0.8, 1)], 1.0),
        ([(*A, 0.8, 1)], [(*LESS, 0.8, 1)], 0.0),
        ([(*A, 0.8, 1)], [(*A, 0.4, 1)], 0.8 / 1.2),
        ([(*A, 0.8, 1), (*FAR, 0.1, 1)], [(*A, 0.8, 1)], 1.6 / 1.7),
        # each once: the second box of one place has no partner
        ([(*A, 0.5, 1)], [(*A, 0.5, 1), (*A, 0.5, 1)], 1.0 / 1.5),
        ([(*A, 0.5, 1), (*A, 0.5, 1)], [(*A, 0.5, 1)], 1.0 / 1.5),
        # the most certain one takes the best partner, whatever the order
        ([(*HALF, 0.2, 1), (*A, 0.9, 1)], [(*A, 0.9, 1), (*HALF, 0.2, 1)], 1.0),
        # another order of the same detections
        ([(*A, 0.5, 1), (*FAR, 0.5, 2)], [(*FAR, 0.5, 2), (*A, 0.5, 1)], 1.0),
    ],
)
def test_agreement(expected: list[Tensor], got: list[Tensor], agreement: float) -> None:
    assert detection_agreement([image(*expected)], [image(*got)]) == pytest.approx(agreement, abs=1e-6)


def test_images_are_matched_one_by_one() -> None:
    one, other = image((*A, 0.5, 1)), image((*FAR, 0.5, 1))
    assert detection_agreement([one, other], [one, other]) == 1.0
    assert detection_agreement([one, other], [other, one]) == 0.0


def test_overlaps_are_those_of_torchvision() -> None:
    corners = torch.rand(20, 2) * 10
    boxes = torch.cat([corners, corners + torch.rand(20, 2) * 10], 1)
    torch.testing.assert_close(_intersection_over_union(boxes[:12], boxes[8:]), box_iou(boxes[:12], boxes[8:]))
    flat = torch.zeros(1, 4)
    assert _intersection_over_union(flat, flat).tolist() == [[0.0]]


def test_other_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="Detections of 1 and of 2 images cannot be compared"):
        detection_agreement([image()], [image(), image()])


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        ([image()], [image((*A, 0.5, 1))], ""),
        ([image()], [image(), image()], "its output is detections in 2 images instead of detections in 1 image"),
        ([image()], torch.zeros(3), "its output is a tensor of shape (3,) instead of detections in 1 image"),
        (torch.zeros(2), torch.zeros(2), ""),
    ],
)
def test_outputs_that_cannot_be_compared(expected: Detections | Tensor, got: Detections | Tensor, said: str) -> None:
    assert mismatch(expected, got) == said


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(2, 4),
        {"boxes": torch.zeros(1, 4)},
        [{"boxes": torch.zeros(1, 4), "scores": torch.zeros(1)}],
        [{**image((*A, 0.5, 1)), "boxes": torch.zeros(2, 4)}],
        [{**image((*A, 0.5, 1)), "boxes": torch.zeros(1, 5)}],
        [{**image((*A, 0.5, 1)), "scores": [0.5]}],
        [image(), torch.zeros(2)],
    ],
)
def test_what_is_not_detections(output: object) -> None:
    assert detections_in(output) is None


def test_other_entries_are_left_out() -> None:
    found = comparable(({**image((*A, 0.5, 1)), "masks": torch.zeros(1, 1, 8, 8)},))
    assert isinstance(found, list)
    assert list(found[0]) == ["boxes", "scores", "labels"]


def test_agreement_over_batches_is_that_of_all_images() -> None:
    metric = DetectionAgreement()
    metric.update([image()], [image()])
    assert float(metric.compute()) == 1.0
    metric.update([image((*A, 0.9, 1))], [image((*A, 0.9, 1))])
    metric.update([image((*A, 0.1, 1))], [image()])
    assert float(metric.compute()) == pytest.approx(1.8 / 1.9)


def test_a_comparison_of_detectors_has_an_agreement_and_no_noise() -> None:
    comparison = ModelComparison(["fake", "int8"], pairs=[("fake", "int8")], optional=True)
    one, other = image((*A, 0.9, 1)), image((*A, 0.9, 1), (*FAR, 0.2, 1))
    comparison.update({"fake": [one], "int8": [other]}, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}])
    results = comparison.compute()
    assert results["fake"] == results["int8"] == {}
    assert list(results["int8_vs_fake"]) == ["agreement"]
    assert math.isclose(results["int8_vs_fake"]["agreement"], 1.8 / 2.0, rel_tol=1e-6)


def test_a_tensor_that_is_returned_twice_is_compared_twice() -> None:
    x = torch.ones(2, 3)
    assert len(comparable({"logits": x, "last": x})) == 2


def test_the_same_detections_in_another_order_agree_by_exactly_one() -> None:
    """A gate of 100 % would refuse 99.99998 %."""
    for count in range(20, 40):
        corners = 1000 * torch.rand(count, 2)
        found = {
            "boxes": torch.cat([corners, corners + 10], 1),
            "scores": torch.rand(count),
            "labels": torch.zeros(count, dtype=torch.long),
        }
        order = torch.randperm(count)
        assert detection_agreement([found], [{key: value[order] for key, value in found.items()}]) == 1.0
