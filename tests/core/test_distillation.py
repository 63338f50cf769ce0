from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lq.core.distillation import distillation_loss, is_class_scores


@pytest.mark.parametrize(
    ("output", "labels", "expected"),
    [
        ((4, 3), torch.zeros(4, dtype=torch.long), True),
        ((4, 3), torch.zeros(4, dtype=torch.bool), True),
        ((4, 3, 5, 6), torch.zeros(4, 5, 6, dtype=torch.long), True),
        ((4, 3, 5, 6), torch.zeros(4, 6, dtype=torch.long), False),
        ((4, 3), torch.zeros(4, 3, dtype=torch.long), False),
        ((4, 3), torch.zeros(5, dtype=torch.long), False),
        ((4,), torch.zeros(4, dtype=torch.long), False),
        ((4, 3), torch.zeros(4), False),
        ((4, 3), torch.zeros(4, dtype=torch.complex64), False),
        ((4, 3), [0, 0, 0, 0], False),
    ],
)
def test_classes_have_one_integer_for_all_scores_of_dimension_one(
    output: tuple[int, ...], labels: Tensor, expected: bool
) -> None:
    assert is_class_scores(torch.zeros(output), labels) == expected


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_averaged_over_all_but_the_classes(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    rows = [scores.movedim(1, -1).reshape(-1, 3) / temperature for scores in (student, teacher)]
    expected = 0.0
    for ours, theirs in zip(*rows, strict=True):
        p, q = theirs.softmax(0), ours.softmax(0)
        expected += temperature**2 * float((p * (p / q).log()).sum()) / len(rows[0])
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = torch.randn(64, 5).bfloat16(), torch.randn(64, 5).bfloat16()
    assert distillation_loss(student, teacher, None).dtype == torch.float32
    torch.testing.assert_close(distillation_loss(student, teacher, None), F.mse_loss(student.float(), teacher.float()))
