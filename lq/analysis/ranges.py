"""How well tensors use their grids: saturation, levels in use, what is dead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lq.analysis.range_counts import RangeListener, RangeRow
from lq.analysis.tensors import evaluating, require_ranges, tensors_of
from lq.backends.prepare import state_of
from lq.core.layer import QATLayer
from lq.core.weight_quantizer import along_channels
from lq.ptq.batches import RunBatch, first_batches, run_batch
from lq.ptq.layers import layers_of


def range_statistics(
    prepared: nn.Module, batches: Iterable[Any], call: RunBatch | None = None, limit: int = 8
) -> list[RangeRow]:
    """Saturation, levels in use and dead tensors or channels, of the fake-quantized model.

    Values that an absorbed ReLU or ReLU6 cuts off do not count as saturated.

    Args:
        prepared: from :func:`lq.prepare`, with ranges.
        batches: data, e.g. a DataLoader.
        call: how to run one batch; see :func:`~lq.ptq.batches.run_batch`.
        limit: batches to use.

    Returns:
        a row per weight, then one per activation, each in execution order.

    Raises:
        ValueError: if the model is not prepared or has no ranges, or there is no batch.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> _ = calibrate(prepared, [torch.linspace(-1, 1, 64).reshape(16, 4)])
        >>> row = range_statistics(prepared, [torch.full((2, 4), 3.0)])[1]
        >>> row["saturated"], row["used_levels"], row["dead"]
        (1.0, 1, 1)
    """
    require_ranges(prepared, "range_statistics()")
    with evaluating(prepared):
        listener = RangeListener(prepared)
        try:
            for batch in first_batches(batches, limit, "range_statistics()"):
                (call or run_batch)(prepared, batch)
        finally:
            listener.remove()
    return [*weight_ranges(prepared), *listener.rows()]


def range_summary(rows: Iterable[RangeRow]) -> dict[str, float]:
    """The worst of many rows, in three figures.

    Args:
        rows: of weights and activations.

    Returns:
        ``saturated_max``, the largest share of values beyond a grid, and ``used_levels_min``, the smallest share of
        levels that occur, both of the activations; ``dead``, channels of weights and activations that are one number.

    Example:
        >>> row = RangeRow(name="a", kind="activation", low=0.0, high=2.55, scale=0.01, levels=256, used_levels=64,
        ...     saturated=0.01, dead=0)
        >>> range_summary([row, {**row, "kind": "weight", "dead": 3}])
        {'saturated_max': 0.01, 'used_levels_min': 0.25, 'dead': 3.0}
    """
    rows = list(rows)
    activations = [row for row in rows if row["kind"] == "activation"]
    return {
        "saturated_max": max((row["saturated"] for row in activations), default=0.0),
        "used_levels_min": min((row["used_levels"] / row["levels"] for row in activations), default=1.0),
        "dead": float(sum(row["dead"] for row in rows)),
    }


def scale_drift(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Largest relative change of a scale between two calls of :func:`activation_scales`.

    Example:
        >>> round(scale_drift({"a": 0.02, "b": 0.1}, {"a": 0.018, "b": 0.1, "c": 1.0}), 3)
        0.1
    """
    return max((abs(now[name] / before[name] - 1) for name in before.keys() & now.keys()), default=0.0)


def activation_scales(prepared: nn.Module) -> dict[str, float]:
    """Scale of every quantized activation that has a range, e.g. to be logged during QAT, where they drift.

    Example:
        >>> from torch import nn
        >>> from lq.ptq.static import prepare_static
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.linspace(0, 2.55, 8).reshape(2, 4)
        >>> prepared = prepare_static(net, [x])
        >>> round(activation_scales(prepared)["input_1"], 4)
        0.01
    """
    state = state_of(prepared)
    return {t.name: t.grid[0] for t in tensors_of(prepared) if state.ready(t.quantizer.slot)}


def weight_ranges(prepared: nn.Module) -> list[RangeRow]:
    """A row per weight, in execution order.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> weight_ranges(prepare(nn.Sequential(nn.Linear(4, 2))))[0]["levels"]
        127
    """
    rows = []
    for layer in layers_of(prepared):
        integers, scale, _ = layer.module.integer_weight(layer.norm)
        spec, largest = layer.module.weight_spec, float(scale.max())
        per_channel = integers.transpose(0, layer.module.channel_axis).flatten(1)
        rows.append(
            RangeRow(
                name=layer.name,
                kind="weight",
                low=spec.quant_min * largest,
                high=spec.quant_max * largest,
                scale=largest,
                levels=spec.quant_max - spec.quant_min + 1,
                used_levels=int(torch.bincount(integers.flatten().long() + 128).count_nonzero()),
                saturated=_beyond(layer.module, layer.norm),
                dead=int((per_channel == 0).all(dim=1).sum()),
            )
        )
    return rows


def _beyond(layer: QATLayer, norm: Any) -> float:
    """Share of the weights that lie beyond the grid: a learned scale and that of "mse" leave some."""
    weight = layer.weight.detach().float()
    if norm is not None and not layer.weight_spec.per_channel:  # its grid is that of the folded weight
        weight = weight * along_channels(layer.folding(norm)[0].detach(), weight, layer.channel_axis)
    scale = layer.quantizer.scale(weight).detach()
    return float(((weight / scale).round().abs() > layer.weight_spec.quant_max).float().mean())
