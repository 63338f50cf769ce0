"""What detectors return: as many boxes, scores and labels as they find, so two answers are matched to be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lq.metrics.outputs import main_first

Detections: TypeAlias = list[dict[str, Tensor]]
Comparable: TypeAlias = Tensor | Detections | tuple[Tensor, ...]  # of several tensors the main one comes first

KEYS = ("boxes", "scores", "labels")
_IOU = 0.5  # what counts as the same object since PASCAL VOC


def detections_in(output: Any) -> Detections | None:
    """The detections in an output, in the layout of torchvision's detectors and of torchmetrics.

    Args:
        output: of a model.

    Returns:
        for each image a dict of ``boxes``, of shape (number, 4) as x1, y1, x2, y2, ``scores`` and ``labels``, of shape
        (number,); ``None`` if the output is of another kind.

    Example:
        >>> found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0), "masks": None}
        >>> detections_in([found])
        [{'boxes': tensor([], size=(0, 4)), 'scores': tensor([]), 'labels': tensor([])}]
        >>> detections_in(torch.zeros(2, 10)), detections_in([])
        (None, None)
    """
    if not isinstance(output, (list, tuple)) or not output or not all(map(_is_of_an_image, output)):
        return None
    return [{key: image[key] for key in KEYS} for image in output]


def comparable(output: Any) -> Comparable:
    """What is compared of an output: its detections if it consists of such, or else its floating tensors.

    Returns:
        detections, the only tensor, or all of them, the main one (:func:`~lq.metrics.outputs.main_tensor`) first.

    Raises:
        ValueError: if the output holds no floating tensor.

    Example:
        >>> comparable({"logits": torch.zeros(2, 10)}).shape
        torch.Size([2, 10])
        >>> [tuple(t.shape) for t in comparable({"loss": torch.zeros(()), "logits": torch.zeros(2, 10)})]
        [(2, 10), ()]
    """
    found = detections_in(output)
    if found is not None:
        return found
    main, *others = main_first(output)
    return (main, *others) if others else main


def main_of(compared: Comparable) -> Tensor | Detections:
    """The detections, or the main tensor.

    Example:
        >>> main_of((torch.zeros(2, 10), torch.zeros(()))).shape
        torch.Size([2, 10])
    """
    return compared[0] if isinstance(compared, tuple) else compared


def mismatch(expected: Comparable, got: Comparable) -> str:
    """Why two outputs cannot be compared, or "".

    Example:
        >>> mismatch(torch.zeros(2, 3), torch.zeros(2, 4))
        'its output has shape (2, 4) instead of (2, 3)'
    """
    if isinstance(expected, tuple) and isinstance(got, tuple) and len(expected) == len(got):
        return next(filter(None, map(mismatch, expected, got)), "")
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        a, b = tuple(expected.shape), tuple(got.shape)
        return "" if a == b else f"its output has shape {b} instead of {a}"
    form, other = _form(expected), _form(got)
    return "" if form == other else f"its output is {other} instead of {form}"


def detection_agreement(expected: Detections, got: Detections) -> float:
    """Share of the detections that two models have in common: F1 at an IoU of 0.5, weighted by scores.

    A detection of one and a detection of the other belong together if they are of the same image and class and their
    intersection over union is at least 0.5, the most certain ones first, each once. Such a pair counts with the lower
    of its two scores.

    Args:
        expected: of the reference, an entry for each image.
        got: of the other, for the same images.

    Returns:
        from 0 to 1; 1 if neither has found anything.

    Raises:
        ValueError: if the numbers of images differ.

    Example:
        >>> box, far = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[50.0, 50.0, 60.0, 60.0]])
        >>> one = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
        >>> boxes = torch.cat([box + 1, far])
        >>> two = {"boxes": boxes, "scores": torch.tensor([0.9, 0.2]), "labels": torch.tensor([1, 1])}
        >>> round(detection_agreement([one], [two]), 3)
        0.9
    """
    agreeing, total = shared_scores(expected, got)
    return agreeing / total if total else 1.0


def shared_scores(expected: Detections, got: Detections) -> tuple[float, float]:
    """The scores that count for :func:`detection_agreement`, and the sum of all, of both models.

    Raises:
        ValueError: if the numbers of images differ.

    Example:
        >>> shared_scores([], [])
        (0.0, 0.0)
    """
    if len(expected) != len(got):
        raise ValueError(f"Detections of {len(expected)} and of {len(got)} images cannot be compared.")
    agreeing = total = 0.0
    for a, b in zip(expected, got, strict=True):
        pairs = _pairs(a, b)
        own, others = a["scores"][[i for i, _ in pairs]], b["scores"][[j for _, j in pairs]]
        # Sums that do not depend on the order, so that equal detections agree by exactly 1.
        agreeing += 2 * math.fsum(torch.minimum(own, others).tolist())
        total += math.fsum(a["scores"].tolist()) + math.fsum(b["scores"].tolist())
    return agreeing, total


def _is_of_an_image(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), Tensor) for key in KEYS):
        return False
    boxes, scores, labels = (value[key] for key in KEYS)
    return bool(boxes.dim() == 2 and boxes.shape[1] == 4 and scores.shape == labels.shape == boxes.shape[:1])


def _form(output: Comparable) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, tuple):
        return f"{len(output)} tensors"
    return f"detections in {len(output)} image{'s' * (len(output) != 1)}"


def _pairs(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Numbers of the detections that belong together."""
    if not len(a["scores"]) or not len(b["scores"]):
        return []
    overlap = _intersection_over_union(a["boxes"].float(), b["boxes"].float())
    overlap[a["labels"][:, None] != b["labels"]] = 0
    pairs = []
    for i in a["scores"].argsort(descending=True, stable=True).tolist():
        best = float(overlap[i].max())
        if best >= _IOU:
            j = int(overlap[i].argmax())
            pairs.append((i, j))
            overlap[:, j] = 0
    return pairs


def _intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Of each box of ``a`` with each of ``b``."""
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    shared = sides.prod(2)
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=torch.finfo(torch.float32).tiny)
