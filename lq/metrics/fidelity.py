"""Distances between two outputs for the same input: SQNR, top-1 agreement, largest absolute error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def sqnr(reference: Tensor, other: Tensor) -> Tensor:
    r"""Signal-to-quantization-noise ratio of one tensor against another, over all elements.

    .. math:: \text{SQNR} = 20 \log_{10} \frac{\lVert x \rVert_2}{\lVert x - y \rVert_2}

    Args:
        reference: :math:`x`, the tensor that counts as exact, of any shape.
        other: :math:`y`, its approximation, of the same shape.

    Returns:
        Scalar float64 tensor in dB; ``inf`` if both are equal.

    Raises:
        ValueError: if the shapes differ.

    Source:
        "QAT in practice, basics", after the post "Practical Quantization in PyTorch".

    Example:
        >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
        tensor(20., dtype=torch.float64)
    """
    return _decibel(*_powers(reference, other))


def top1_agreement(a: Tensor, b: Tensor) -> Tensor:
    r"""Share of predictions for which two classifiers choose the same class.

    .. math:: \frac{1}{N} \sum_i [\arg\max_c a_{ic} = \arg\max_c b_{ic}]

    Args:
        a: scores of shape ``(N, C, ...)`` with at least two classes.
        b: scores of the same shape.

    Returns:
        Scalar float64 tensor in [0, 1].

    Raises:
        ValueError: if the shapes differ or there is no dimension of classes.

    Example:
        >>> top1_agreement(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    same, total = _agreeing(a, b)
    return same.double() / total


def max_abs_error(a: Tensor, b: Tensor) -> Tensor:
    r"""Largest absolute difference between two tensors.

    .. math:: \max_i |a_i - b_i|

    Args:
        a: tensor of any shape with at least one element.
        b: tensor of the same shape.

    Returns:
        Scalar float64 tensor in the unit of the arguments.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> max_abs_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]))
        tensor(3., dtype=torch.float64)
    """
    _check_shapes(a, b)
    return (a.double() - b.double()).abs().amax()


class SQNR(Metric):
    """:func:`sqnr` over all batches seen: powers are summed, and the ratio is taken once at the end.

    Example:
        >>> metric = SQNR()
        >>> metric.update(torch.tensor([3.0]), torch.tensor([3.0]))
        >>> metric.update(torch.tensor([4.0]), torch.tensor([4.5]))
        >>> metric.compute()
        tensor(20., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    signal: Tensor
    noise: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("signal", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("noise", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reference: Tensor, other: Tensor) -> None:
        """Add a batch (see :func:`sqnr`)."""
        signal, noise = _powers(reference, other)
        self.signal = self.signal + signal
        self.noise = self.noise + noise

    def compute(self) -> Tensor:
        """SQNR in dB over everything seen."""
        return _decibel(self.signal, self.noise)


class Top1Agreement(Metric):
    """:func:`top1_agreement` over all batches seen.

    Example:
        >>> metric = Top1Agreement()
        >>> metric.update(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 9.0]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    same: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("same", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch (see :func:`top1_agreement`)."""
        same, total = _agreeing(a, b)
        self.same = self.same + same
        self.total = self.total + total

    def compute(self) -> Tensor:
        """Share of equal predictions over everything seen."""
        return self.same.double() / self.total


class MaxAbsError(Metric):
    """:func:`max_abs_error` over all batches seen.

    Example:
        >>> metric = MaxAbsError()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    largest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("largest", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch (see :func:`max_abs_error`)."""
        self.largest = torch.maximum(self.largest, max_abs_error(a, b))

    def compute(self) -> Tensor:
        """Largest absolute difference over everything seen."""
        return self.largest


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ; compare two outputs of the same batch.")


def _powers(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(reference, other)
    # float64: at 60 dB the noise power is a millionth of the signal's, and long float32 sums drop such parts
    x = reference.double()
    return x.square().sum(), (x - other.double()).square().sum()


def _decibel(signal: Tensor, noise: Tensor) -> Tensor:
    ratio = 10 * (torch.log10(signal) - torch.log10(noise))
    return torch.where(noise == 0, torch.full_like(ratio, torch.inf), ratio)  # zero against zero too


def _agreeing(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    _check_shapes(a, b)
    if a.ndim < 2 or a.shape[1] < 2:
        raise ValueError(
            f"scores of shape {tuple(a.shape)} have no classes to choose from; "
            "top-1 agreement needs (N, C, ...) with C >= 2."
        )
    same = a.argmax(dim=1) == b.argmax(dim=1)
    return same.sum(), same.numel()
