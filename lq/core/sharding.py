"""Parameters of which each process holds a part, as ``torch.distributed.fsdp.fully_shard`` leaves them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_shard(value: Any) -> bool:
    """Whether a tensor is a part of one that lies in several processes.

    Example:
        >>> import torch
        >>> is_shard(torch.zeros(1))
        False
    """
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has split a module or a part of it.

    Its parameters need not be shards at the moment: those of the outermost part stay whole after a forward pass.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return any("FSDPModule" in (base.__name__ for base in type(part).__mro__) for part in module.modules())


def whole(value: Any) -> Any:
    """A shard gathered from all processes, on the CPU; anything else as it is.

    All processes have to call this, for the same tensors in the same order.

    Args:
        value: an entry of a state dict, or a parameter.

    Example:
        >>> import torch
        >>> whole(torch.ones(1))
        tensor([1.])
    """
    return value.detach().full_tensor().cpu() if is_shard(value) else value


def require_whole(module: nn.Module, what: str) -> None:
    """Refuse a module that is split among processes.

    Args:
        module: to be refused.
        what: cannot be done with it, for the message.

    Raises:
        ValueError: if it is.

    Example:
        >>> require_whole(nn.Linear(2, 2), "lq.convert()")
    """
    if is_sharded(module):
        raise ValueError(
            f"{what} needs whole weights, but those of {type(module).__name__} are split among processes. Call "
            "whole = lq.unsharded(module) in every process, and use that copy in one of them."
        )
