"""Are two outputs the same, but for the rounding of another order of additions?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lq.compat.float64 import as_float64
from lq.tracing.structure import tensors_of

TOLERANCE = 1e-5  # of the largest value


def are_close(expected: Any, got: Any) -> bool:
    """Whether two results hold as many tensors, and none of them differs.

    Example:
        >>> are_close({"x": torch.ones(2)}, {"x": torch.ones(2)}), are_close(torch.ones(2), ())
        (True, False)
    """
    a, b = tensors_of(expected), tensors_of(got)
    return len(a) == len(b) and all(difference(x, y) is None for x, y in zip(a, b, strict=True))


def difference(expected: Tensor, got: Tensor) -> str | None:
    """How the tensors differ; ``None`` if they do not.

    Floating tensors may differ by 1e-5 of the largest finite value, or of 1 if that is less; infinities and NaN have to
    stand in the same places, and all else has to be equal.

    Example:
        >>> x = torch.tensor([1.0, 200.0, -torch.inf])
        >>> difference(x, x + 0.001)
        >>> difference(x, x + 0.01)
        'by 0.01 (allowed 0.002)'
        >>> difference(x, torch.tensor([1.0, 200.0, 0.0])), difference(torch.tensor([1]), torch.tensor([2]))
        ('in where they are infinite or NaN', 'in values that are no floating-point numbers')
        >>> difference(x, x[:2])
        'in shape: (3,) and (2,)'
    """
    if expected.shape != got.shape:
        return f"in shape: {tuple(expected.shape)} and {tuple(got.shape)}"
    if not expected.is_floating_point() or not got.is_floating_point():
        equal = torch.equal(expected, got)
        return None if equal else "in values that are no floating-point numbers"
    a, b = as_float64(expected), as_float64(got)
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not torch.equal(a[~finite].nan_to_num(0), b[~finite].nan_to_num(0)):
        return "in where they are infinite or NaN"
    if not finite.any():
        return None
    limit = TOLERANCE * max(1.0, float(a[finite].abs().max()))
    error = float((a[finite] - b[finite]).abs().max())
    return f"by {error:.3g} (allowed {limit:.3g})" if error > limit else None
