"""How well tensors use their grids: saturation, levels in use, what is dead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
from torch import Tensor, fx, nn

from lq.analysis.tensors import QuantizedTensor, evaluating, require_ranges, tensors_of
from lq.backends.prepare import state_of
from lq.core.qparams import ACTIVATIONS
from lq.ptq.batches import Call, first_batches, run_batch
from lq.ptq.layers import layers_of


class RangeRow(TypedDict):
    """One tensor.

    Args:
        name: the layer, or the operation behind which it stands.
        kind: "weight" or "activation".
        low: lowest value that the grid holds, in the unit of the tensor; of weights, of the widest channel.
        high: highest value.
        scale: step of the grid; of weights, the largest of all channels.
        levels: integers that the grid has.
        used_levels: integers that occur.
        saturated: share of the values beyond the grid, in [0, 1].
        dead: of weights, channels in which every integer is 0; of activations, 1 if only one integer occurs.
    """

    name: str
    kind: str
    low: float
    high: float
    scale: float
    levels: int
    used_levels: int
    saturated: float
    dead: int


def range_statistics(
    prepared: fx.GraphModule, batches: Iterable[Any], call: Call | None = None, limit: int = 8
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
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> _ = calibrate(prepared, [torch.linspace(-1, 1, 64).reshape(16, 4)])
        >>> row = range_statistics(prepared, [torch.full((2, 4), 3.0)])[1]
        >>> row["saturated"], row["used_levels"], row["dead"]
        (1.0, 1, 1)
    """
    require_ranges(prepared, "range_statistics()")
    with evaluating(prepared) as state:
        tensors = [tensor for tensor in tensors_of(prepared) if state.ready(tensor.quantizer.slot)]
        counts = {tensor.name: _Count(tensor) for tensor in tensors}
        hooks = [t.quantizer.register_forward_pre_hook(_counting(counts[t.name])) for t in tensors]
        try:
            for batch in first_batches(batches, limit, "range_statistics()"):
                (call or run_batch)(prepared, batch)
        finally:
            for hook in hooks:
                hook.remove()
    return [*_weight_rows(prepared), *(counts[tensor.name].row() for tensor in tensors)]


def activation_scales(prepared: fx.GraphModule) -> dict[str, float]:
    """Scale of every quantized activation that has a range, e.g. to be logged during QAT, where they drift.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.linspace(0, 2.55, 8).reshape(2, 4)])
        >>> round(activation_scales(prepared)["input_1"], 4)
        0.01
    """
    state = state_of(prepared)
    return {t.name: t.grid[0] for t in tensors_of(prepared) if state.ready(t.quantizer.slot)}


class _Count:
    """Integers that occurred, and how many values lay beyond them."""

    def __init__(self, tensor: QuantizedTensor) -> None:
        self.tensor = tensor
        self.scale, self.low, self.high = tensor.grid
        self.occurred = torch.zeros(int(self.high - self.low) + 1, dtype=torch.bool)
        self.beyond = self.total = 0

    def add(self, x: Tensor) -> None:
        integers = torch.clamp(x.float(), *ACTIVATIONS[self.tensor.quantizer.activation]).div(self.scale).round_()
        inside = integers.clamp(self.low, self.high)
        self.beyond += int((inside != integers).sum())
        self.total += x.numel()
        self.occurred[(inside - self.low).long().flatten().cpu()] = True

    def row(self) -> RangeRow:
        spec = self.tensor.quantizer.__dict__["state"].specs[self.tensor.quantizer.slot]
        used = int(self.occurred.sum())
        return RangeRow(
            name=self.tensor.name,
            kind="activation",
            low=self.low * self.scale,
            high=self.high * self.scale,
            scale=self.scale,
            levels=spec.quant_max - spec.quant_min + 1,
            used_levels=used,
            saturated=self.beyond / max(self.total, 1),
            dead=int(used <= 1),
        )


def _counting(count: _Count) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: count.add(args[0])


def _weight_rows(prepared: fx.GraphModule) -> list[RangeRow]:
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
                saturated=_beyond(layer.module),
                dead=int((per_channel == 0).all(dim=1).sum()),
            )
        )
    return rows


def _beyond(layer: Any) -> float:
    """Only a learned scale leaves weights beyond its grid."""
    if layer.weight_scale is None:
        return 0.0
    _, scale = layer._integers(layer.weight.float())
    return float(((layer.weight / scale).round().abs() > layer.weight_spec.quant_max).float().mean())
