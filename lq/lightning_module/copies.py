"""A copy of the user's module that may run beside the original, outside of its Trainer."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lq.compat.lightning_private import TRAINER, forget_metrics, without_device_mesh, without_trainer
from lq.compat.packages import is_lightning_module
from lq.compat.torch_private import as_before_sharding, tree_leaves
from lq.core.sharding import is_shard, is_sharded, whole

Module = TypeVar("Module", bound=nn.Module)

_LARGE = 2**28  # bytes


def detached_copy(module: LightningModule) -> LightningModule:
    """A deep copy without its trainer, on the CPU; of a module that is split among processes, :func:`unsharded`.

    What Python cannot copy, such as a lock or the client of a service, both have in common; a tensor that was kept with
    its graph, such as the last loss, loses that in the copy.
    """
    with without_trainer(module), without_device_mesh(module):
        twin = deep_copy(module).cpu()
    if is_sharded(module):  # a Trainer of its own would have its weights split again
        twin.__dict__["configure_model"] = _nothing
    forget_metrics(twin)
    _uncompile(twin)
    return twin


def float_copy(model: nn.Module) -> nn.Module:
    """A copy of a float model on the CPU, in float32; see :func:`detached_copy`.

    Example:
        >>> float_copy(nn.Linear(2, 2).double()).weight.dtype
        torch.float32
    """
    return (detached_copy(model) if is_lightning_module(model) else deep_copy(model)).cpu().float()


def deep_copy(module: Module) -> Module:
    """A deep copy of any module, where :func:`copy.deepcopy` would refuse; see :func:`detached_copy`.

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
    # What leads back to a part of the module, such as a hook that is one of its methods, can be copied with it.
    parts = {id(part): part for part in chain(module.modules(), module.parameters())} | dict(known)
    memo: dict[int, Any] = {}
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


def free_copies(module: nn.Module) -> None:
    """Give back the memory of copies of a large module that nobody holds any more.

    A copy that a Trainer has run is in reference cycles with it, which Python looks for only now and then.

    Args:
        module: the original; of a small one copies may stay for a while.

    Example:
        >>> free_copies(nn.Linear(2, 2))
    """
    if sum(parameter.nbytes for parameter in module.parameters()) > _LARGE:
        gc.collect()


def _nothing() -> None:
    pass


def _uncompile(twin: LightningModule) -> None:
    """Cut a copy off from compiled code, which still runs the original (Lightning 2.6 copies it along)."""
    for part in twin.modules():
        part.__dict__.pop("_compiled_call_impl", None)
    if twin.__dict__.get("_compiler_ctx") is not None:
        twin.__dict__["_compiler_ctx"] = None
        for step in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            twin.__dict__.pop(step, None)
