"""What leaving a layer in float would cost in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, fx, nn

from lq.analysis.tensors import evaluating, require_ranges, tensors_of
from lq.compat.deprecations import quiet_torchscript
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.int8 import Int8Layer
from lq.ptq.batches import RunBatch, run_batch
from lq.ptq.layers import QuantizedLayer, layers_of
from lq.ptq.weights import folded_weights
from lq.timing.latency import compare_latency


class CostRow(TypedDict):
    """One layer.

    Args:
        layer: its name.
        macs: multiplications with its weight in one call.
        int8_ms: time of its int8 kernel, in milliseconds; None if it has none.
        float_ms: time of the same layer in float between a dequantization and a quantization; None if there is no
            int8 kernel to replace.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.ones(8, 4)
        >>> (row,) = layer_costs(prepare_static(nn.Sequential(nn.Linear(4, 2)), [x]), x, min_time=0.001)
        >>> row["macs"], row["int8_ms"] > 0, row["float_ms"] > 0
        (64, True, True)
    """

    layer: str
    macs: int
    int8_ms: float | None
    float_ms: float | None


def layer_costs(
    prepared: nn.Module, batch: Any, call: RunBatch | None = None, threads: int = 1, min_time: float = 0.05
) -> list[CostRow]:
    """Time of every layer in int8, and in float with a dequantization before and a quantization behind it.

    That is the cost of one float layer among int8 layers. Neighbours in float share the conversions and cost a little
    less. Times are those of the fastest calls, because other processes disturb the median.

    Args:
        prepared: from :func:`lq.prepare`, with ranges.
        batch: of the size that will be deployed, as :func:`~lq.ptq.batches.run_batch` takes it.
        call: how to run it.
        threads: threads that PyTorch may use.
        min_time: seconds to measure each layer for, at least.

    Returns:
        a row per layer, in execution order.

    Raises:
        ValueError: if the model is not prepared or has no ranges.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.randn(8, 4)
        >>> rows = layer_costs(prepare_static(nn.Sequential(nn.Linear(4, 2)), [x]), x, min_time=0.001)
        >>> rows[0]["layer"], rows[0]["macs"], rows[0]["float_ms"] > 0
        ('0', 64, True)
    """
    require_ranges(prepared, "layer_costs()")
    prepared = as_graph(prepared)
    with evaluating(prepared), quiet_torchscript():
        int8 = convert(prepared)
        kernels = dict(int8.named_modules())
        macs = _macs(prepared, batch, call or run_batch)
        inputs = _int8_inputs(int8, batch, call or run_batch)
        written = {str(t.node.target): t.node.name for t in tensors_of(prepared) if t.node is not None}
        rows = []
        for layer in layers_of(prepared):
            name = written.get(layer.name, "")
            row = CostRow(layer=layer.name, macs=macs.get(layer.name, 0), int8_ms=None, float_ms=None)
            if name in inputs:
                kernel = cast(Int8Layer, kernels[name])
                fns: dict[str, Callable[..., Any]] = {"int8": kernel, "float": _in_float(layer, kernel)}
                times = compare_latency(fns, (inputs[name],), threads=threads, warmup=2, min_time=min_time)
                row["int8_ms"], row["float_ms"] = times["int8"].min_ms, times["float"].min_ms
            rows.append(row)
    return rows


def _macs(prepared: fx.GraphModule, batch: Any, call: RunBatch) -> dict[str, int]:
    """Multiplications of every layer, over all its calls."""
    macs: dict[str, int] = {}

    def count(layer: QuantizedLayer) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # A transposed convolution meets its whole weight once per input position, the others once per output one.
            seen = args[0] if layer.module.channel_axis else output
            positions = seen.numel() // layer.module.weight.shape[0]
            macs[layer.name] = macs.get(layer.name, 0) + positions * layer.module.weight.numel()

        return hook

    hooks = [layer.module.register_forward_hook(count(layer)) for layer in layers_of(prepared)]
    try:
        call(prepared, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return macs


def _int8_inputs(int8: fx.GraphModule, batch: Any, call: RunBatch) -> dict[str, Tensor]:
    """What every int8 kernel is called with."""
    inputs: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: inputs.update({name: args[0]})

    kernels = [(name, module) for name, module in int8.named_modules() if isinstance(module, Int8Layer)]
    hooks = [module.register_forward_pre_hook(noting(name)) for name, module in kernels]
    call(int8, batch)
    for hook in hooks:
        hook.remove()
    return inputs


def _in_float(layer: QuantizedLayer, kernel: Int8Layer) -> Callable[[Tensor], Tensor]:
    weight, _, bias = folded_weights(layer.module, layer.norm)

    def run(x: Tensor) -> Tensor:
        y = layer.module.compute(x.dequantize(), weight, bias)  # an absorbed ReLU is the lower end of the grid
        return torch.quantize_per_tensor(y, kernel.scale, kernel.zero_point, torch.quint8)

    return run
