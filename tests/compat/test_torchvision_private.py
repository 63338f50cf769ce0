"""What lq replaces in torchvision while a detector is exported: it must compute what torchvision does, and go again."""

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._library.fake_impl import FakeImplCtx
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers

from lq.compat import torchvision_private as private
from lq.compat.torchvision_private import boxes_without_branches
from lq.metrics.detections import detection_agreement
from tests.detectors import DETECTORS, SIZE, photographs


def boxes_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100 - 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 40], 1)
    return boxes, torch.rand(count, generator=generator), torch.randint(0, 3, (count,), generator=generator)


@pytest.mark.parametrize("count", [0, 1, 200, 1500])  # torchvision goes another way from 1,000 boxes on
def test_boxes_of_each_class_are_suppressed_as_by_torchvision(count: int) -> None:
    boxes, scores, classes = boxes_of(count)
    expected = torchvision.ops.batched_nms(boxes, scores, classes, 0.4)
    with boxes_without_branches(nn.Identity()):
        assert torchvision.ops.batched_nms is not BATCHED_NMS
        assert torch.equal(torchvision.ops.batched_nms(boxes, scores, classes, 0.4), expected)


BATCHED_NMS = torchvision.ops.batched_nms


@pytest.mark.parametrize("sizes", [[(64, 64), (64, 64)], [(40, 60), (50, 30)], [(96, 33)]])
def test_images_are_batched_as_by_torchvision(sizes: list[tuple[int, int]]) -> None:
    transform = GeneralizedRCNNTransform(64, 64, [0.0], [1.0])
    images = [torch.rand(3, *size) for size in sizes]
    expected = transform.batch_images(images)
    with boxes_without_branches(nn.Identity()):
        assert torch.equal(transform.batch_images(images), expected)


@pytest.mark.parametrize("classes", [1, 3])
def test_boxes_are_decoded_as_by_torchvision(classes: int) -> None:
    coder, (anchors, _, _) = BoxCoder((10.0, 10.0, 5.0, 5.0)), boxes_of(7)
    codes = torch.randn(7, 4 * classes)
    expected = coder.decode(codes, [anchors[:3], anchors[3:]])
    with boxes_without_branches(nn.Identity()):
        assert torch.equal(coder.decode(codes, [anchors[:3], anchors[3:]]), expected)


def test_everything_is_as_before_also_after_an_error() -> None:
    owners: list[Any] = [box_ops, torchvision.ops, poolers, BoxCoder, GeneralizedRCNNTransform, FakeImplCtx]
    before = [dict(vars(owner)) for owner in owners]
    with pytest.raises(RuntimeError, match="within"), boxes_without_branches(nn.Identity()):
        raise RuntimeError("within")
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_function_that_the_users_code_has_imported_is_replaced_there(monkeypatch: pytest.MonkeyPatch) -> None:
    home: Any = ModuleType("a_users_module")
    home.batched_nms = torchvision.ops.batched_nms
    monkeypatch.setitem(sys.modules, home.__name__, home)
    net = type("Net", (nn.Module,), {"__module__": home.__name__})()
    with boxes_without_branches(net):
        assert home.batched_nms is not BATCHED_NMS
    assert home.batched_nms is BATCHED_NMS


def test_nothing_happens_where_nobody_has_imported_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, private._BOXES)
    with boxes_without_branches(nn.Identity()):
        assert torchvision.ops.batched_nms is BATCHED_NMS


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_exported_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().eval()
    images = [image for image, _ in photographs(2)]
    with boxes_without_branches(detector), torch.no_grad():
        program = torch.export.export(copy.deepcopy(detector), (images,), strict=False).module()
    for given in (images, [image for image, _ in photographs(2, seed=5)], [torch.zeros(3, SIZE, SIZE)] * 2):
        with torch.no_grad():
            expected, found = detector(given), program(given)
        assert [len(image["scores"]) for image in found] == [len(image["scores"]) for image in expected]
        assert detection_agreement(expected, found) > 0.999


def test_a_detector_that_finds_nothing_is_exported() -> None:
    detector: Any = DETECTORS["RetinaNet"]().eval()
    detector.score_thresh = 0.999
    images = [image for image, _ in photographs(2)]
    with boxes_without_branches(detector), torch.no_grad():
        program = torch.export.export(detector, (images,), strict=False).module()
        assert [len(image["scores"]) for image in program(images)] == [0, 0]
