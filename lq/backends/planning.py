"""What a plan says of a module, and what is said when there is none."""

from __future__ import annotations

import warnings

from torch import nn

from lq.core.own_class import own_class
from lq.messages import some_of
from lq.tracing.plan import LayerPlan, Plan


def in_module_order(module: nn.Module, rows: list[LayerPlan]) -> tuple[LayerPlan, ...]:
    """One row for each layer, in the order of the module's own listing."""
    order = {name: i for i, (name, _) in enumerate(module.named_modules(remove_duplicate=False))}
    unique = {row.name: row for row in rows}
    return tuple(sorted(unique.values(), key=lambda row: order.get(row.name, len(order))))


def warn_of(plan: Plan) -> None:
    """Warn of notes."""
    for note in plan.notes:
        warnings.warn(f"lq: {note}.", stacklevel=4)


def nothing_to_quantize(module: nn.Module, floats: list[LayerPlan]) -> str:
    """What to say of a module of which no layer is quantized."""
    kind = own_class(module).__name__
    if floats:
        rows = some_of((f"{row.name} ({row.kind}): {row.reason}" for row in floats), separator="; ")
        return f"{kind} has no layer to quantize: {rows}. Widen include, shorten exclude, or choose another target."
    return f"{kind} has no quantizable layer (Linear, Conv1d-3d, ConvTranspose1d-3d). Choose a target that has one."
