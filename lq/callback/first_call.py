"""What is checked on the target's first inputs, before the first step of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lq.backends.in_place import plan_at_once
from lq.backends.self_check import self_check
from lq.compat.torch_private import without_dispatch_modes
from lq.conversion.on_cpu import on_cpu_in_float32
from lq.core.sharding import is_sharded
from lq.deployment.rehearsal import rehearse
from lq.deployment.settings import ExportSettings
from lq.instrument.listen import Listener
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.last_call import on_cpu
from lq.lightning_module.target import float_state, prepared_graph, target_of
from lq.tracing.batch import fixed_batch
from lq.tracing.structure import Inputs


def watch_first_call(module: LightningModule, name: str, note: Callable[[Inputs], None]) -> Listener:
    """Pass the inputs of the target's first call, on the CPU, to ``note``, before that call runs.

    Example:
        >>> module = LightningModule()
        >>> module.model = nn.Linear(2, 1)
        >>> _ = watch_first_call(module, "model", print)
        >>> _ = module.model(torch.ones(1, 2)), module.model(torch.zeros(1, 2))
        ((tensor([[1., 1.]]),), {})
    """

    def first_call(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        listener.remove()
        # The sanity check runs in inference mode, whose tensors cannot be used in training, and Lightning's summary
        # counts operations, which would mistake an export for a part of the model.
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), without_dispatch_modes():
            note(on_cpu((args, kwargs)))

    listener = Listener(target_of(module, name), before=first_call)
    return listener


def check_first_call(
    module: LightningModule, name: str, float_model: nn.Module, example: Inputs, settings: ExportSettings
) -> None:
    """Check that the prepared target computes what the float one does, and that its int8 model can be exported.

    Args:
        module: the prepared LightningModule, in training; where it is split, all processes have to call this.
        name: of its target.
        float_model: the float target on the CPU; it takes over the current weights.
        example: inputs of one call, on the CPU.
        settings: what is to be delivered at the end.

    Raises:
        ValueError: if either is not so.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module, float_model, example = LightningModule(), nn.Sequential(nn.Linear(2, 1)), ((torch.ones(1, 2),), {})
        >>> module.model = prepare(nn.Sequential(nn.Linear(2, 1)))
        >>> check_first_call(module, "model", float_model, example, ExportSettings())
        >>> float_model[0].weight.equal(module.model[0].weight)  # of the training; it had other ones
        True
    """
    plan_at_once(target_of(module, name), example)
    if is_sharded(module):
        module = detached_copy(module)
    prepared = on_cpu_in_float32(prepared_graph(module, name, example, settings.axes))
    weights = float_state(target_of(module, name))
    float_model.load_state_dict(weights)
    try:
        self_check(float_model, prepared, *example)
    except (RuntimeError, ValueError) as error:
        reason = _about_types(weights)
        if reason is None:
            raise
        raise ValueError(f"{type(float_model).__name__} {reason}") from error
    batch = fixed_batch(prepared)
    if batch is not None:
        (rank_zero_info if batch.images else rank_zero_warn)(f"lq: {batch.note}.")
    for note in rehearse(prepared, example, settings.exporters):
        rank_zero_info(f"lq: {note}")


def _about_types(weights: Mapping[str, Any]) -> str | None:
    """Why a model of several float types may fail, or compute something else, in float32."""
    types = {value.dtype: key for key, value in weights.items() if value.is_floating_point()}
    if len(types) < 2:
        return None
    found = ", ".join(f"{str(dtype).removeprefix('torch.')} ({key})" for dtype, key in types.items())
    return (
        f"has parameters of several types: {found}. lq evaluates and exports it in float32, and forward does not take "
        "that. Convert to the type of the layer that follows, as in x.to(self.head.weight.dtype), in the place of a "
        "fixed one, as in x.double()."
    )
