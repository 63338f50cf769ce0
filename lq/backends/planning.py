"""What a plan says of a module, and what is said when there is none."""

from __future__ import annotations

import warnings

from torch import nn

from lq.core.own_class import own_class
from lq.messages import some_of
from lq.tracing.plan import LayerPlan, Plan


def in_module_order(module: nn.Module, rows: list[LayerPlan]) -> tuple[LayerPlan, ...]:
    """One row for each layer, in the order of the module's own listing.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> rows = [LayerPlan("1", "Linear"), LayerPlan("0", "Linear"), LayerPlan("1", "Linear")]
        >>> [row.name for row in in_module_order(net, rows)]
        ['0', '1']
    """
    order = {name: i for i, (name, _) in enumerate(module.named_modules(remove_duplicate=False))}
    unique = {row.name: row for row in rows}
    return tuple(sorted(unique.values(), key=lambda row: order.get(row.name, len(order))))


def warn_of(plan: Plan) -> None:
    """Warn of notes.

    Example:
        >>> plan = Plan("Net", "portable", (), (), notes=("net.py:7 gives a tensor from numpy",))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of(plan)
        >>> str(caught[0].message)
        'lq: net.py:7 gives a tensor from numpy.'
    """
    for note in plan.notes:
        warnings.warn(f"lq: {note}.", stacklevel=4)


def nothing_to_quantize(module: nn.Module, floats: list[LayerPlan]) -> str:
    """What to say of a module of which no layer is quantized.

    Example:
        >>> nothing_to_quantize(nn.ReLU(), [])
        'ReLU has no quantizable layer (Linear, Conv1d-3d, ConvTranspose1d-3d). Choose a target that has one.'
        >>> rows = [LayerPlan("0", "Linear", reason="exclude '0'")]
        >>> nothing_to_quantize(nn.Sequential(nn.Linear(4, 2)), rows).partition(". ")[0]
        "Sequential has no layer to quantize: 0 (Linear): exclude '0'"
    """
    kind = own_class(module).__name__
    if floats:
        rows = some_of((f"{row.name} ({row.kind}): {row.reason}" for row in floats), separator="; ")
        return f"{kind} has no layer to quantize: {rows}. Widen include, shorten exclude, or choose another target."
    return f"{kind} has no quantizable layer (Linear, Conv1d-3d, ConvTranspose1d-3d). Choose a target that has one."
