"""Biases on the grid on which integer kernels add them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from lq.backends.prepare import state_of
from lq.compat.float64 import as_float64
from lq.compat.torch_private import BatchNorm
from lq.core.fake_quantize import FakeQuantize
from lq.core.layer import QATLayer
from lq.tracing import ops


@torch.no_grad()
def round_biases(prepared: fx.GraphModule) -> None:
    """Move every bias, in place, to the nearest multiple of ``input scale * weight scale``.

    Integer kernels add the bias to an int32 sum of products, so some runtimes (ONNX Runtime, TFLite) round it to int32
    on that scale (Jacob et al., arXiv:1712.05877, section 2.4). The rounding is a thousandth of a step of the output,
    but it flips values that lie next to a tie, and the flips grow from layer to layer: 39 dB instead of 50 at the end
    of a ResNet18. Rounded beforehand, the bias is the same number everywhere.

    Layers whose input is not quantized, or that are called more than once, stay as they are.

    Args:
        prepared: with ranges; biases of layers, and of BatchNorms behind them, are changed.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.conversion.graph import as_graph
        >>> from lq.ptq import calibrate
        >>> net = nn.Sequential(nn.Linear(1, 1))
        >>> _ = net.load_state_dict({"0.weight": torch.tensor([[63.0]]), "0.bias": torch.tensor([7.4])})
        >>> x = torch.tensor([[0.0], [255.0]])  # the scales of input and weight become 1
        >>> _ = calibrate(prepare(net, example_args=(x,)), [x], show_progress=False)
        >>> round_biases(as_graph(net))
        >>> net[0].bias.data
        tensor([7.])
    """
    state = state_of(prepared)
    modules = dict(prepared.named_modules())
    scales = state.scale_zero_point()[0]
    calls = [node for node in prepared.graph.nodes if isinstance(ops.module_of(node, modules), QATLayer)]
    targets = [node.target for node in calls]
    for node in calls:
        source = _quantizer_of(node.args[0], modules)
        if source is None or targets.count(node.target) > 1 or not state.ready(source.slot):
            continue
        observed = float(scales[source.slot])
        scale = observed if source.learned_scale is None else float(source.learned_scale(observed))
        layer: Any = modules[str(node.target)]
        _round(layer, _batch_norm(prepared, node), scale)


def _round(layer: QATLayer, bn: Any, input_scale: float) -> None:
    _, weight_scale, bias = layer.integer_weight(bn)
    if bias is None:
        return
    step = as_float64(weight_scale) * input_scale
    steps = torch.round(as_float64(bias) / step)
    # A bias beyond int32 belongs to a channel that is all but dead; there is no grid for it.
    change = torch.where(steps.abs() < 2**31, steps * step - as_float64(bias), torch.zeros_like(step))
    if bn is None:
        assert layer.bias is not None
        layer.bias.add_(change.to(layer.bias))
    elif bn.bias is not None:
        bn.bias.add_(change.to(bn.bias))
    else:
        bn.running_mean.sub_((change * torch.sqrt(as_float64(bn.running_var) + bn.eps)).to(bn.running_mean))


def _quantizer_of(arg: Any, modules: dict[str, nn.Module]) -> FakeQuantize | None:
    """The fake quantizer that a tensor comes from, through operations whose results are on its grid."""
    while isinstance(arg, fx.Node):
        module = ops.module_of(arg, modules)
        if isinstance(module, FakeQuantize):
            return module
        if not ops.is_same_grid(arg) and ops.relu_kind(arg) != "relu":  # 0 is on every grid
            return None
        arg = arg.args[0]
    return None


def _batch_norm(prepared: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    if len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
        return None
    found: Any = prepared.get_submodule(str(node.args[1].target))
    return found if isinstance(found, BatchNorm) else None
