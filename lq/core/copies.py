"""Copies of any module, whatever its attributes are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from lq.compat.torch_private import as_before_sharding, tree_leaves
from lq.core.sharding import is_shard, is_sharded, whole

Module = TypeVar("Module", bound=nn.Module)


def deep_copy(module: Module) -> Module:
    """A deep copy of any module, where :func:`copy.deepcopy` would refuse.

    What Python cannot copy, such as a lock or the client of a service, both have in common; a tensor that was kept with
    its graph, such as the last loss, loses that in the copy. Of a module that is split among processes it is
    :func:`unsharded`.

    Example:
        >>> import torch
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> deep_copy(layer) is layer
        False
    """
    return unsharded(module) if is_sharded(module) else _deep_copy(module, {})


def unsharded(module: Module) -> Module:
    """A copy with whole parameters, on the CPU, of a module that ``fully_shard`` has split among processes.

    It is what :func:`lq.convert`, :func:`lq.export_artifact` and the like take, in one process, as the whole model. The
    module itself stays as it is. Buffers, such as the statistics of a BatchNorm, are those of the process.

    Args:
        module: prepared or not; all processes have to call this.

    Returns:
        the copy, in every process.

    Source:
        https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

    Example:
        >>> unsharded(nn.Linear(2, 2))  # of one that is not split: just a copy
        Linear(in_features=2, out_features=2, bias=True)
    """
    if not is_sharded(module):
        return _deep_copy(module, {}).cpu()
    shards = [parameter for parameter in module.parameters() if is_shard(parameter)]
    gathered = {id(shard): nn.Parameter(whole(shard), shard.requires_grad) for shard in shards}
    with as_before_sharding(module):
        return _deep_copy(module, gathered).cpu()


def _deep_copy(module: Module, known: Mapping[int, Any]) -> Module:
    """With copies that there are already, by the identity of the original."""
    try:
        return copy.deepcopy(module, dict(known))
    except Exception:  # whatever the user's attributes raise
        return copy.deepcopy(module, {**known, **_stand_ins(module, known)})


def _stand_ins(module: nn.Module, known: Mapping[int, Any]) -> dict[int, Any]:
    """What a copy gets in the place of attributes that cannot be copied, by their identity."""
    from lq.compat.lightning_private import TRAINER  # processes without Lightning import this module

    # What leads back to a part of the module, such as a hook that is one of its methods, can be copied with it.
    parts = {id(part): part for part in chain(module.modules(), module.parameters())} | dict(known)
    memo: dict[int, Any] = {
        id(buffer): UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]
        for buffer in module.buffers()
        if isinstance(buffer, UninitializedBuffer)
    }
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_modules", TRAINER):
                continue
            graphs = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_leaf]
            memo |= {id(tensor): tensor.detach().clone() for tensor in graphs}
            try:
                copy.deepcopy(value, parts | memo)
            except Exception:
                memo[id(value)] = value
    return memo
