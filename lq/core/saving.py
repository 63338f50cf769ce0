"""What autograd saves of quantized tensors: as bytes, or not at all, instead of as floats.

Whatever the consumers of a quantized tensor save for their backward passes, a convolution its input, a pooling, a
product, goes through one pair of hooks. What lies in the memory of a tensor that is known here is not saved: it can be
made again, to the bit, and is made once for all of its consumers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lq.compat.torch_private import innermost_saved_tensors_hooks, may_hook_saved_tensors, storage_key, version_of


class _Known:
    """A tensor whose values can be made again; ``version`` is ``None`` while the function that makes it runs."""

    def __init__(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self.start, self.layout = tensor.storage_offset(), (tensor.shape, tensor.stride())
        self.make = make
        self.version: int | None = None
        self.made: Tensor | None = None

    def values(self, for_the_last_time: bool) -> Tensor:
        """The tensor, of the same shape and order in memory, at the beginning of its storage."""
        made = self.make() if self.made is None else self.made
        self.made = None if for_the_last_time else made
        return made


class _Part:
    """What stands for a saved tensor: a view of one that is known."""

    def __init__(self, known: _Known, view: Tensor) -> None:
        self.known = known
        # The maker of a tensor is the first to save it, and the last to ask for it.
        self.is_makers = known.version is None
        self.shape, self.stride, self.start = view.shape, view.stride(), view.storage_offset() - known.start

    def values(self) -> Tensor:
        whole = self.known.values(self.is_makers)
        if (self.shape, self.stride, self.start) == (whole.shape, whole.stride(), whole.storage_offset()):
            return whole
        return whole.as_strided(self.shape, self.stride, whole.storage_offset() + self.start)


class Saving:
    """Within its block, quantized tensors that it is told of are not saved by autograd.

    Example:
        >>> x = torch.ones(4, requires_grad=True)
        >>> with Saving() as saving:
        ...     double = x * 2
        ...     saving.know(double, lambda: torch.full((4,), 2.0))
        ...     saving.made(double)
        ...     y = double.square().sum()  # saves no floats
        >>> y.backward()
        >>> x.grad
        tensor([8., 8., 8., 8.])
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}  # by the address of the storage, which the reference keeps from reuse
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    @staticmethod
    def is_possible() -> bool:
        """Whether nobody else looks after saved tensors here, such as torch.utils.checkpoint or torch.func."""
        return may_hook_saved_tensors() and innermost_saved_tensors_hooks(False) is None

    def __enter__(self) -> Saving:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._known = {}

    def know(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        """Take a tensor in that is being made, in front of whatever saves it.

        Args:
            tensor: it has its storage for itself.
            make: makes it again, in the same order in memory.
        """
        if tensor.untyped_storage().nbytes() == tensor.nbytes:
            known = _Known(tensor, make)
            self._known[known.storage.cdata] = known

    def made(self, tensor: Tensor) -> None:
        """A tensor has its values now; if it is written into later, it is another one."""
        known = self._known.get(storage_key(tensor))
        if known is not None:
            known.version = version_of(tensor)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.layout is torch.strided:
            known = self._known.get(storage_key(tensor))
            if known is not None and known.version in (None, version_of(tensor)):
                return _Part(known, tensor)
        # Detached, since a result that its own node holds would never be freed.
        return (tensor if tensor.is_leaf else tensor.detach()), version_of(tensor)


def current() -> Saving | None:
    """The innermost block, unless other hooks are on top of it, as within a checkpointed part.

    Example:
        >>> with Saving() as saving:
        ...     within = current() is saving
        ...     with torch.no_grad():  # where nothing is saved
        ...         print(within, current())
        True None
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    hooks = innermost_saved_tensors_hooks(False)
    owner = None if hooks is None else getattr(hooks[0], "__self__", None)
    return owner if isinstance(owner, Saving) else None


def is_recorded() -> bool:
    """Within a backward pass: whether it is itself differentiated later, as for a penalty on gradients.

    Example:
        >>> is_recorded()
        True
        >>> with torch.no_grad():  # as of loss.backward()
        ...     is_recorded()
        False
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, _Part):
        return packed.values()
    tensor: Tensor = packed[0]
    require_version(tensor, packed[1])
    return tensor


def require_version(tensor: Tensor, version: int) -> None:
    """Refuse a tensor that has been written into, as autograd does.

    Raises:
        RuntimeError: if it has.

    Example:
        >>> weight = torch.zeros(2)
        >>> version = version_of(weight)
        >>> require_version(weight.add_(1), version)
        Traceback (most recent call last):
            ...
        RuntimeError: one of the variables ... is at version 1; expected version 0 instead. ...
    """
    if version_of(tensor) != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a "
            f"{tensor.dtype} of shape {list(tensor.shape)} is at version {version_of(tensor)}; expected version "
            f"{version} instead. Write into it after the backward pass, or into a copy of it."
        )
