"""A copy of the user's module that may run beside the original, outside of its Trainer."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lq.compat.lightning_private import TRAINER, forget_metrics, without_trainer
from lq.compat.torch_private import tree_leaves

Module = TypeVar("Module", bound=nn.Module)


def detached_copy(module: LightningModule) -> LightningModule:
    """A deep copy without its trainer, on the CPU.

    What Python cannot copy, such as a lock or the client of a service, both have in common; a tensor that was kept with
    its graph, such as the last loss, loses that in the copy.
    """
    with without_trainer(module):
        twin = deep_copy(module).cpu()
    forget_metrics(twin)
    _uncompile(twin)
    return twin


def deep_copy(module: Module) -> Module:
    """A deep copy of any module, where :func:`copy.deepcopy` would refuse; see :func:`detached_copy`.

    Example:
        >>> import torch
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> deep_copy(layer) is layer
        False
    """
    try:
        return copy.deepcopy(module)
    except Exception:  # whatever the user's attributes raise
        return copy.deepcopy(module, _stand_ins(module))


def _stand_ins(module: nn.Module) -> dict[int, Any]:
    """What a copy gets in the place of attributes that cannot be copied, by their identity."""
    # What leads back to a part of the module, such as a hook that is one of its methods, can be copied with it.
    parts = {id(part): part for part in chain(module.modules(), module.parameters())}
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


def _uncompile(twin: LightningModule) -> None:
    """Cut a copy off from compiled code, which still runs the original (Lightning 2.6 copies it along)."""
    for part in twin.modules():
        part.__dict__.pop("_compiled_call_impl", None)
    if twin.__dict__.get("_compiler_ctx") is not None:
        twin.__dict__["_compiler_ctx"] = None
        for step in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            twin.__dict__.pop(step, None)
