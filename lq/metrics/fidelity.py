"""Distances between two outputs for the same input: SQNR, top-1 agreement, largest absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

from lq.compat.float64 import as_float64


def sqnr(reference: Tensor, other: Tensor) -> Tensor:
    r"""Signal-to-quantization-noise ratio of one tensor against another, over all elements.

    .. math:: \text{SQNR} = 20 \log_{10} \frac{\lVert x \rVert_2}{\lVert x - y \rVert_2}

    Args:
        reference: :math:`x`, the tensor that counts as exact, of any shape.
        other: :math:`y`, its approximation, of the same shape.

    Returns:
        Scalar float64 tensor, on the CPU if the device has no float64, in dB; ``inf`` if both are equal.

    Raises:
        ValueError: if the shapes differ.

    Source:
        "QAT in practice, basics", after the post "Practical Quantization in PyTorch".

    Example:
        >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
        tensor(20., dtype=torch.float64)
    """
    return decibel(*powers(reference, other))


def top1_agreement(a: Tensor, b: Tensor) -> Tensor:
    r"""Share of predictions for which a classifier chooses a class that another one has on top.

    .. math:: \frac{1}{N} \sum_i [a_{i k_i} = \max_c a_{ic}], \quad k_i = \arg\max_c b_{ic}

    Scores of 8 bits tie: where the reference has several largest ones, each of them is right.

    Args:
        a: scores of the reference, of shape ``(N, C, ...)`` with at least two classes.
        b: scores of the other, of the same shape.

    Returns:
        Scalar float64 tensor, on the CPU if the device has no float64, in [0, 1].

    Raises:
        ValueError: if the shapes differ or there is no dimension of classes.

    Example:
        >>> top1_agreement(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]]))
        tensor(0.5000, dtype=torch.float64)
        >>> top1_agreement(torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([[1.9, 2.0, 0.0]]))
        tensor(1., dtype=torch.float64)
    """
    same, total = agreeing(a, b)
    return as_float64(same) / total


def max_abs_error(a: Tensor, b: Tensor) -> Tensor:
    r"""Largest absolute difference between two tensors.

    .. math:: \max_i |a_i - b_i|

    Args:
        a: tensor of any shape with at least one element.
        b: tensor of the same shape.

    Returns:
        Scalar float64 tensor, on the CPU if the device has no float64, in the unit of the arguments.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> max_abs_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]))
        tensor(3., dtype=torch.float64)
    """
    _check_shapes(a, b)
    return (as_float64(a) - as_float64(b)).abs().amax()


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ; compare two outputs of the same batch.")


def powers(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of a tensor and of its difference from another, float64: what :func:`decibel` takes.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> powers(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
        (tensor(25., dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """
    _check_shapes(reference, other)
    # float64: at 60 dB the noise power is a millionth of the signal's, and long float32 sums drop such parts
    x = as_float64(reference)
    return x.square().sum(), (x - as_float64(other)).square().sum()


def decibel(signal: Tensor, noise: Tensor) -> Tensor:
    """The ratio of two powers in dB; infinite without noise, even if there is no signal.

    Example:
        >>> decibel(torch.tensor([100.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor([20., inf, inf])
    """
    ratio = 10 * (torch.log10(signal) - torch.log10(noise))
    return torch.where(noise == 0, torch.full_like(ratio, torch.inf), ratio)  # zero against zero too


def agreeing(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    """How many predictions of ``b`` are on top in ``a``, and how many there are; see :func:`top1_agreement`.

    Raises:
        ValueError: if the shapes differ or there is no dimension of classes.

    Example:
        >>> agreeing(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]]))
        (tensor(1), 2)
    """
    _check_shapes(a, b)
    if a.ndim < 2 or a.shape[1] < 2:
        raise ValueError(
            f"scores of shape {tuple(a.shape)} have no classes to choose from; "
            "top-1 agreement needs (N, C, ...) with C >= 2."
        )
    same = a.gather(1, b.argmax(dim=1, keepdim=True)) == a.amax(dim=1, keepdim=True)
    return same.sum(), same.numel()
