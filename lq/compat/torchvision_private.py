"""torchvision's detectors for ``torch.export``: their box operations without branches on how many boxes there are.

``tests/compat/test_torchvision_private.py`` tries what is relied on.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.fake_impl import FakeImplCtx
from torch.nn import functional as F

_OPS, _BOXES, _POOLERS = "torchvision.ops", "torchvision.ops.boxes", "torchvision.ops.poolers"
_CODING, _TRANSFORM = "torchvision.models.detection._utils", "torchvision.models.detection.transform"
_ABSENT = object()


@contextmanager
def any_number_of_results() -> Iterator[None]:
    """Let operations of other packages have any number of results: torchvision's say that they have at least two.

    Example:
        >>> from torchvision.ops import nms
        >>> class Boxes(nn.Module):
        ...     def forward(self, boxes: Tensor) -> Tensor:
        ...         return boxes[nms(boxes, boxes[:, 0], 0.5)]
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
        >>> with any_number_of_results():
        ...     program = torch.export.export(Boxes(), (boxes,), strict=False)
        >>> program.module()(boxes).shape
        torch.Size([1, 4])
    """
    with _replaced([(FakeImplCtx, "create_unbacked_symint", _any_number)]):
        yield


def is_detector(model: nn.Module) -> bool:
    """Whether a model holds one of torchvision's detectors.

    Example:
        >>> is_detector(nn.ReLU())
        False
    """
    if _TRANSFORM not in sys.modules:
        return False
    transform = sys.modules[_TRANSFORM].GeneralizedRCNNTransform
    return any(isinstance(module, transform) for module in model.modules())


@contextmanager
def boxes_without_branches(model: nn.Module) -> Iterator[None]:
    """Export non-maximum suppression, pooling of regions and decoding of boxes as operations on any number of boxes.

    They compute what they did: :func:`torchvision.ops.batched_nms` moves the boxes of each class apart, as it does
    itself for up to 1,000 boxes. Images are padded and stacked in place of being written into a tensor of zeros, which
    a file would hold.

    Args:
        model: to be exported; functions that the modules of its classes have imported are replaced there, too.

    Example:
        >>> import torchvision
        >>> class Boxes(nn.Module):
        ...     def forward(self, boxes: Tensor, classes: Tensor) -> Tensor:
        ...         return torchvision.ops.batched_nms(boxes, boxes[:, 0], classes, 0.5)
        >>> box, classes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0, 1, 1])
        >>> with boxes_without_branches(Boxes()):
        ...     program = torch.export.export(Boxes(), (box.repeat(3, 1), classes), strict=False)
        >>> program.module()(box.repeat(3, 1), classes).shape  # one of each class
        torch.Size([2])
    """
    boxes: Any = sys.modules.get(_BOXES)
    if boxes is None:  # nobody has imported torchvision
        yield
        return
    original = boxes.batched_nms
    users = {sys.modules.get(kind.__module__) for module in model.modules() for kind in type(module).__mro__}
    changes: list[tuple[Any, str, Any]] = [
        (user, "batched_nms", _batched_nms)
        for user in {boxes, sys.modules[_OPS], *users} - {None}
        if vars(user).get("batched_nms") is original
    ]
    changes.append((sys.modules[_POOLERS], "len", _length))
    if _CODING in sys.modules:
        changes.append((sys.modules[_CODING].BoxCoder, "decode", _decode))
        changes.append((sys.modules[_TRANSFORM].GeneralizedRCNNTransform, "batch_images", _batch_images))
    with _replaced(changes), any_number_of_results():
        yield


@contextmanager
def _replaced(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """With other values of attributes: owner, name and value of each."""
    before = [(owner, name, vars(owner).get(name, _ABSENT)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    apart = boxes + (idxs.to(boxes) * (largest + 1))[:, None]
    kept: Tensor = torch.ops.torchvision.nms(apart, scores, iou_threshold)
    return kept


def _length(value: Any) -> Any:
    """``len``, which would make a number of the size of a tensor."""
    return value.shape[0] if isinstance(value, Tensor) else builtins.len(value)


def _any_number(context: Any, *, min: int = 0, max: int | None = None) -> torch.SymInt:
    """As torchvision's operators ask for the number of their results, which they say is at least 2."""
    size: torch.SymInt = context.new_dynamic_size(min=min, max=max)
    return size


def _decode(coder: Any, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
    decoded: Tensor = coder.decode_single(rel_codes, torch.cat(list(boxes)))
    return decoded.reshape(decoded.shape[0], decoded.shape[1] // 4, 4)


def _batch_images(transform: Any, images: list[Tensor], size_divisible: int = 32) -> Tensor:
    height, width = (
        math.ceil(max(image.shape[side] for image in images) / size_divisible) * size_divisible for side in (1, 2)
    )
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])
