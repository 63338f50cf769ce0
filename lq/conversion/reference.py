"""``reference``: a prepared module as a float graph with explicit quantize and dequantize operations ("QDQ").

It is what runtimes import: each finds its own int8 kernels around the pairs. Weights are int8 tensors with a scale per
channel, and a ReLU or ReLU6 that a quantizer's clamp has absorbed is left to its saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lq.compat.torch_private import register_decomposed
from lq.conversion.int8 import room_for_bias
from lq.conversion.lowering import Lowering, bare_layer, graph_with_ranges, same_layer
from lq.conversion.tensor_grid import TensorGrid
from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QATLayer
from lq.tracing import ops

_SEVERAL_RESULTS = {"chunk", "split", "tensor_split", "unbind"}


def reference(prepared: nn.Module, signed: bool = False) -> fx.GraphModule:
    """Build the QDQ graph of a prepared module, which is left as it is.

    The operations are those of ``torch.ops.quantized_decomposed``, as torch.export, inductor, torch.onnx and ExecuTorch
    know them.

    Args:
        prepared: from :func:`lq.prepare`, on any device, with ranges.
        signed: give every activation int8 integers, moving those of uint8 grids by 128; else int8 is used only for
            grids that have negative integers. Grids of 16 bits have uint16.

    Returns:
        a GraphModule on the CPU, in evaluation mode; its int8 weights keep the names of the float ones.

    Raises:
        ValueError: if it is not prepared or has fake quantizers that never saw a batch.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq import calibrate
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> x = torch.randn(64, 4)
        >>> _ = calibrate(prepared, [x])
        >>> qdq = reference(prepared)
        >>> qdq.get_submodule("0").weight.dtype
        torch.int8
        >>> bool((qdq(x) - prepared.eval()(x)).abs().max() < 0.05)
        True
    """
    register_decomposed()
    with torch.inference_mode(False), torch.no_grad():
        return _ReferenceLowering(graph_with_ranges(prepared), signed).run()


@dataclass(frozen=True)
class _Value:
    """A float node, and the grid that its values lie on if they do."""

    real: fx.Node
    grid: TensorGrid | None = None


class ReferenceLayer(nn.Module):
    """A layer that dequantizes its int8 weight and computes in float; runtimes replace both by an int8 kernel.

    Args:
        module: the QAT layer, for its hyperparameters.
        integers: int8 weight of its shape.
        scale: float32 of shape (channels,), or () for per-tensor weights.
        bias: float32, or ``None``.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> from lq.core.modules import QAT_LAYERS
        >>> from lq.core.state import QATState
        >>> register_decomposed()
        >>> layer = QAT_LAYERS[nn.Linear].from_float(nn.Linear(2, 1), WeightSpec(), QATState([], [], []))
        >>> integers, scale = torch.tensor([[100, -50]], dtype=torch.int8), torch.tensor([0.01])
        >>> ReferenceLayer(layer, integers, scale, bias=None)(torch.tensor([[3.0, 4.0]]))  # 3 * 1.0 - 4 * 0.5
        tensor([[1.]])
    """

    weight: Tensor
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, module: QATLayer, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.kind = type(module).__name__.removeprefix("QAT")
        self.axis, self.compute = module.channel_axis, type(module).compute
        self.__dict__["hyperparameters"] = bare_layer(module)
        # torch.export refuses a number that it would have to read from a tensor.
        self.per_tensor_scale = None if scale.dim() else float(scale)
        self.register_buffer("weight", integers.contiguous())
        self.register_buffer("weight_scale", scale if scale.dim() else None)
        self.register_buffer("weight_zero_point", torch.zeros(scale.shape, dtype=torch.int32) if scale.dim() else None)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Float in, float out."""
        decomposed, ends = torch.ops.quantized_decomposed, (-128, 127, torch.int8)
        if self.per_tensor_scale is None:
            grid = (self.weight_scale, self.weight_zero_point, self.axis)
            weight = decomposed.dequantize_per_channel(self.weight, *grid, *ends)
        else:
            weight = decomposed.dequantize_per_tensor(self.weight, self.per_tensor_scale, 0, *ends)
        return self.compute(self.__dict__["hyperparameters"], x, weight, self.bias)

    def extra_repr(self) -> str:
        """Kind of layer."""
        return self.kind


class _ReferenceLowering(Lowering):
    prefix = "Reference"

    def __init__(self, prepared: fx.GraphModule, signed: bool) -> None:
        super().__init__(prepared)
        self.signed = signed

    def quantizer(self, node: fx.Node, module: FakeQuantize) -> _Value:
        grid = self.grid(module)
        x = self.real(cast(fx.Node, node.args[0]))
        absorbed = grid.zero_point == grid.quant_min  # saturation at 0 is the ReLU, and that at the other end a ReLU6
        if module.activation != "none" and not absorbed:
            x = self.graph.call_function(torch.nn.functional.relu, (x,))
        return self._quantized(x, grid)

    def _quantized(self, x: fx.Node, grid: TensorGrid, is_inside: bool = False) -> _Value:
        """Behind a quantize-dequantize pair; ``is_inside``: no value is beyond the ends of the grid.

        Runtimes saturate at the ends of the integer type. A grid that lacks only its lowest integer, as the symmetric
        [-127, 127], is left to that; a narrower one needs a clamp of its own.
        """
        dtype = torch.int8 if self.signed or grid.quant_min < 0 else torch.uint8
        if grid.quant_max > 255:
            dtype = torch.uint16
        ints = grid.shifted_into(dtype)
        info = torch.iinfo(dtype)
        if not is_inside and (ints.quant_max < info.max or ints.quant_min > info.min + 1):
            x = self.graph.call_function(torch.clamp, (x, *ints.ends))
        decomposed = torch.ops.quantized_decomposed
        arguments = (ints.scale, ints.zero_point, info.min, info.max, dtype)
        q = self.graph.call_function(decomposed.quantize_per_tensor.default, (x, *arguments))
        return _Value(self.graph.call_function(decomposed.dequantize_per_tensor.default, (q, *arguments)), grid)

    def layer(self, node: fx.Node, module: QATLayer) -> _Value:
        norm, source = self.batch_norm(node), self.values.get(cast(fx.Node, node.args[0]))
        grid = source.grid if isinstance(source, _Value) else None

        def build() -> ReferenceLayer:
            integers, scale, bias = module.integer_weight(norm)
            if grid is not None and bias is not None and scale.dim():
                integers, scale = room_for_bias(integers, scale, bias, grid.scale)
            return ReferenceLayer(module, integers, scale, bias)

        key = (*same_layer(module, norm), grid)
        return _Value(self.call_once(key, str(node.target), build, self.real(cast(fx.Node, node.args[0]))))

    def operation(self, node: fx.Node) -> Any:
        copied = self.copy(node, self.real)
        source = self.values.get(cast(fx.Node, node.args[0])) if node.args else None
        grid = source.grid if isinstance(source, _Value) else None
        # 0 is on every grid, so that a ReLU stays on it, too.
        if grid is None or not (ops.is_same_grid(node) or ops.relu_kind(node) == "relu"):
            return _Value(copied)
        if ops.operation_of(node) in _SEVERAL_RESULTS or ops.gives_places(node):
            return _Value(copied, grid)
        # The pair behind it changes no value, but tells the runtime that the operation may run on integers.
        return self._quantized(copied, grid, is_inside=True)

    def wrap(self, node: fx.Node) -> _Value:
        return _Value(node)

    def unwrap(self, value: Any) -> Any:
        return value.real if isinstance(value, _Value) else value
