"""A copy of the user's module that may run beside the original, outside of its Trainer."""

from __future__ import annotations

import gc

from lightning.pytorch import LightningModule
from torch import nn

from lq.compat.lightning_private import forget_metrics, without_device_mesh, without_trainer
from lq.compat.packages import is_lightning_module
from lq.core.copies import deep_copy
from lq.core.sharding import is_sharded

_LARGE = 2**28  # bytes


def detached_copy(module: LightningModule) -> LightningModule:
    """A deep copy without its trainer, on the CPU, that runs eagerly; see :func:`lq.core.copies.deep_copy`.

    All processes have to call this where the module is split among them: each gets a copy with the whole weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> module = LightningModule()
        >>> module.net, module.trainer = nn.Linear(4, 2), Trainer(barebones=True)
        >>> twin = detached_copy(module)
        >>> twin.net.weight is module.net.weight, twin.net.weight.equal(module.net.weight)
        (False, True)
        >>> twin.trainer
        Traceback (most recent call last):
        ...
        RuntimeError: LightningModule...is not attached to a `Trainer`.
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
