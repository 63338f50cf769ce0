"""One input tensor of an exported model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lq.fields import Field
from lq.tracing.axes import ANY, BATCH


@dataclass(frozen=True)
class TensorSpec:
    """One input tensor.

    Args:
        name: of the argument, numbered where that holds several.
        shape: its sizes, each a number or, where it may be any, a name: "batch", which all inputs share, "any", which
            is independent of the others, or that of a dynamic axis (:func:`lq.tracing.axes.checked_axes`).
        dtype: as torch calls it.
        sizes: those of the example; left out they are those of ``shape``, and 1 for names.

    Example:
        >>> from lq.export.artifact.signature import Signature
        >>> example = (torch.zeros(8, 4),), {}
        >>> spec, = Signature.of(torch.nn.Linear(4, 2), example, torch.zeros(8, 2)).inputs
        >>> print(spec, spec.sizes)
        input: float32(batch, 4) (8, 4)
        >>> spec.fits(torch.zeros(3, 4)), spec.fits(torch.zeros(3, 5))
        (True, False)
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = self.sizes or tuple(1 if isinstance(size, str) else size for size in self.shape)
        object.__setattr__(self, "sizes", sizes)

    @property
    def static(self) -> TensorSpec:
        """The same with the example's sizes in the place of dynamic axes."""
        pairs = zip(self.shape, self.sizes, strict=True)
        return replace(self, shape=tuple(name if name in (BATCH, ANY) else size for name, size in pairs))

    @classmethod
    def read(cls, given: Field) -> TensorSpec:
        """From plain data, of whatever origin.

        Raises:
            ValueError: naming the field that is not as a manifest has it.
        """
        dtype = given["dtype"]
        if not isinstance(getattr(torch, dtype.text(), None), torch.dtype):
            raise dtype.error("a type of torch, such as 'float32'")
        shape = tuple(_size(size) for size in given["shape"].each())
        sizes = given.get("sizes", [])
        found = tuple(size.integer(0) for size in sizes.each())
        if found and len(found) != len(shape):
            raise sizes.error(f"a list of {len(shape)} numbers, as many as 'shape' has")
        return cls(given["name"].text(), shape, dtype.text(), found)

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has this shape and type."""
        same = all(isinstance(want, str) or want == got for want, got in zip(self.shape, tensor.shape, strict=False))
        return tensor.dim() == len(self.shape) and same and str(tensor.dtype) == f"torch.{self.dtype}"

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}({', '.join(map(str, self.shape))})"


def _size(given: Field) -> int | str:
    if given.value is None:  # as earlier versions wrote the batch
        return BATCH
    if isinstance(given.value, str):
        if not given.value.isidentifier():
            raise given.error(f"a number, {BATCH!r}, {ANY!r} or another name")
        return given.value
    return given.integer(0)
