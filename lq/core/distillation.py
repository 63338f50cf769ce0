"""How far a student's output is from its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def is_class_scores(output: Tensor, labels: object) -> bool:
    """Whether an output scores classes: its labels are integers, one for all of dimension 1.

    Args:
        output: (N, C, ...).
        labels: (N, ...) for class scores.

    Example:
        >>> import torch
        >>> is_class_scores(torch.rand(2, 10), torch.tensor([3, 7])), is_class_scores(torch.rand(2, 10), None)
        (True, False)
    """
    return (
        isinstance(labels, Tensor)
        and not (labels.is_floating_point() or labels.is_complex())
        and output.dim() >= 2
        and tuple(labels.shape) == (output.shape[0], *output.shape[2:])
    )


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    r"""What a student has to learn of its teacher.

    .. math:: T^2 \cdot \text{KL}(\text{softmax}(t / T) \,\|\, \text{softmax}(s / T))

    for class scores, averaged over all but the classes; the mean of :math:`(s - t)^2` for anything else.

    Args:
        student: (N, C, ...) for class scores, with the classes in dimension 1; else any shape.
        teacher: of the same shape.
        temperature: :math:`T`, above 0; ``None`` if the tensors are no class scores.

    Returns:
        a scalar in float32.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531; for low
        bits: Mishra, Marr, "Apprentice", https://arxiv.org/abs/1711.05852.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(scores, torch.tensor([[0.0, 2.0]]), temperature=1.0)
        tensor(1.5232)
        >>> distillation_loss(scores, scores + 5, temperature=None)
        tensor(25.)
    """
    student, teacher = student.float(), teacher.float()
    if temperature is None:
        return F.mse_loss(student, teacher)
    ours, theirs = ((scores / temperature).log_softmax(dim=1) for scores in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return divergence * (temperature**2 * student.shape[1] / student.numel())


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""What an inner layer of a student has to learn of its teacher's.

    .. math:: \sum (s - t)^2 / \sum t^2

    so that every layer counts alike, whatever the size of its values.

    Args:
        student: any shape.
        teacher: of the same shape.

    Returns:
        a scalar in float32.

    Source:
        Romero et al., "FitNets: Hints for Thin Deep Nets", https://arxiv.org/abs/1412.6550, without the division.

    Example:
        >>> hint_loss(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        tensor(0.0400)
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
