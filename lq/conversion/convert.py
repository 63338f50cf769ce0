"""``convert``: a prepared module becomes a model that computes with int8 kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from lq.backends.prepare import qconfig_of
from lq.compat.deprecations import quiet_torchscript
from lq.conversion.int8 import Int8Layer, has_kernel, quantized_engine
from lq.conversion.lowering import Lowering, bare_layer, graph_with_ranges, same_layer
from lq.conversion.tensor_grid import TensorGrid
from lq.conversion.wide import check_eight_bits
from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QATLayer
from lq.tracing import ops
from lq.tracing.axes import DynamicAxes, checked_axes
from lq.tracing.fixed_arguments import refuse_other_arguments


def convert(prepared: nn.Module, dynamic_axes: DynamicAxes | None = None) -> fx.GraphModule:
    """Convert a prepared module to an int8 model that computes what it emulates; ``prepared`` is not changed.

    Args:
        prepared: from :func:`lq.prepare`, trained or calibrated, on any device.
        dynamic_axes: for each input, dimensions beside the batch whose size shall be open, as a list or as a mapping to
            names: ``{"x": {2: "height", 3: "width"}}``.

    Returns:
        a GraphModule on the CPU, in evaluation mode, float tensors in and out, int8 kernels inside. It is called as the
        module is; arguments that are no tensors are fixed in it, as are sizes but those of the batch and the dynamic
        axes, and others are refused.

    Raises:
        ValueError: if it is not prepared, has fake quantizers that never saw a batch, or activations of 16 bits, or if
            its code makes a dynamic axis a constant.

    Example:
        >>> from lq.backends.prepare import prepare, set_phase
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
        >>> x = torch.randn(64, 4)
        >>> _ = prepared.train()(x)
        >>> int8 = convert(prepared)
        >>> bool((int8(x) - prepared.eval()(x)).abs().max() < 0.05)
        True
    """
    check_eight_bits(prepared, "PyTorch")
    graph = graph_with_ranges(prepared, checked_axes(dynamic_axes))
    engine = quantized_engine(qconfig_of(prepared).resolved_engine)
    with engine, quiet_torchscript(), torch.inference_mode(False), torch.no_grad():
        int8 = _Int8Lowering(graph).run()
        refuse_other_arguments(int8.graph)
        int8.recompile()
        return int8


_WHY_FLOAT = "_lq_why_float"


def in_float(int8: nn.Module) -> dict[str, str]:
    """The layers of a converted model that were to run in int8 and compute in float, and why.

    Args:
        int8: from :func:`convert`.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq import calibrate
        >>> prepared = prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)))
        >>> _ = calibrate(prepared, [torch.rand(2, 1, 8, 8)], show_progress=False)
        >>> list(in_float(convert(prepared)))
        ['1']
    """
    return dict(m.__dict__[_WHY_FLOAT] for m in int8.modules() if _WHY_FLOAT in m.__dict__)


@dataclass
class _Value:
    """What the new graph knows of one old value: a float node, a quantized node, and the grid that it lies on."""

    real: fx.Node | None = None
    quantized: fx.Node | None = None
    grid: TensorGrid | None = None


class _Int8Lowering(Lowering):
    """To torch's quantized kernels; what has none computes in float, between dequantization and quantization."""

    prefix = "Int8"

    def quantizer(self, node: fx.Node, module: FakeQuantize) -> _Value:
        source = cast(fx.Node, node.args[0])
        grid = self.grid(module).shifted_into(torch.uint8)
        kernel = self._kernel(source, module.activation != "none", grid)
        if kernel is None:
            # Its end stands for that of a ReLU6, as in training, where a learned scale may have moved it beyond 6.
            activation = "none" if module.activation == "none" else "relu"
            kernel = self._quantize(self.activated(self.real(source), activation), grid)
        if not grid.fills(torch.uint8):
            kernel = self.graph.call_function(torch.clamp, (kernel, *grid.ends))
        return _Value(quantized=kernel, grid=grid)

    def _quantize(self, x: fx.Node, grid: TensorGrid) -> fx.Node:
        return self.graph.call_function(torch.quantize_per_tensor, (x, grid.scale, grid.zero_point, torch.quint8))

    def _kernel(self, source: fx.Node, relu: bool, grid: TensorGrid) -> fx.Node | None:
        """The int8 kernel that computes ``source`` and writes it on this grid, if there is one."""
        module = ops.module_of(source, self.modules)
        output = (grid.scale, grid.zero_point)
        if isinstance(module, QATLayer) and source not in self.values:
            x = self._quantized(source.args[0])
            given = self._grid_of(source.args[0])
            assert given is not None
            norm, entry = self.batch_norm(source), (given.scale, given.zero_point)
            key = (*same_layer(module, norm), relu, output, entry)
            return self.call_once(key, str(source.name), lambda: Int8Layer(module, norm, relu, *output, entry), x)
        inputs = ops.joined_tensors(source)
        if inputs is None or source in self.values:
            return None
        suffix = "_relu" if relu else ""
        quantized = [self._quantized(n) for n in inputs]
        name = ops.operation_of(source)
        if name == "cat":
            dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", source.kwargs.get("axis", 0))
            kernel = getattr(torch.ops.quantized, f"cat{suffix}")
            return self.graph.call_function(kernel, (quantized, dim, *output))
        return self.graph.call_function(getattr(torch.ops.quantized, f"{name}{suffix}"), (*quantized, *output))

    def skips(self, node: fx.Node) -> bool:
        """Layers and joins whose every input is quantized run inside the kernel that writes their grid."""
        if len(node.users) != 1:
            return False
        user = ops.module_of(next(iter(node.users)), self.modules)
        if not isinstance(user, FakeQuantize) or self.state.names[user.slot] in self.unseen:
            return False
        module = ops.module_of(node, self.modules)
        if isinstance(module, QATLayer):
            return has_kernel(module, torch.backends.quantized.engine) and self._grid_of(node.args[0]) is not None
        joined = ops.joined_tensors(node)
        return joined is not None and all(self._grid_of(n) is not None for n in joined)

    def operation(self, node: fx.Node) -> _Value:
        if ops.is_same_grid(node) or ops.relu_kind(node) is not None:
            return self._same_grid(node)
        read = self._contiguous if ops.operation_of(node) in _OF_USUAL_STRIDES else self.real
        return _Value(real=_reshaping(self.copy(node, read)))

    def _contiguous(self, node: fx.Node) -> fx.Node:
        return self.graph.call_method("contiguous", (self.real(node),))

    def _same_grid(self, node: fx.Node) -> _Value:
        grid = self._grid_of(node.args[0]) if node.args else None
        if grid is None or ops.relu_kind(node) == "relu6":
            return _Value(real=_reshaping(self.copy(node, self.real)))
        if not _runs_on_quantized(node):
            return _Value(real=_reshaping(self.copy(node, self.real)), grid=grid)
        keep = lambda n: self._quantized(n) if n is node.args[0] else self.real(n)  # noqa: E731
        return _Value(quantized=_reshaping(self.copy(node, keep)), grid=grid)

    def layer(self, node: fx.Node, module: QATLayer) -> _Value:
        """A layer without int8 kernel, or without a range because it never ran: float, its weight on its grid."""
        integers, scale, bias = module.integer_weight(self.batch_norm(node))
        shaped = scale if scale.dim() == 0 else module.along_channels(scale)
        layer: Any = bare_layer(module)
        layer.weight = nn.Parameter(integers.float() * shaped, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        layer.__dict__[_WHY_FLOAT] = (str(node.target), self._why_float(node, module))
        return _Value(real=self.call(str(node.name), layer, self.real(cast(fx.Node, node.args[0]))))

    def _why_float(self, node: fx.Node, module: QATLayer) -> str:
        engine = torch.backends.quantized.engine
        if not has_kernel(module, engine):
            kind = type(module).__name__.removeprefix("QAT")
            return f"engine {engine!r} has no int8 kernel for {kind} that computes what was trained"
        if self._grid_of(node.args[0]) is None:
            return "its input is in float"
        behind = [ops.module_of(user, self.modules) for user in node.users]
        if any(isinstance(m, FakeQuantize) and self.state.names[m.slot] in self.unseen for m in behind):
            return "its output has no range, because it never ran"
        return "its output is not quantized, or is also read as it is before that"

    # ---- values -------------------------------------------------------------------------------------------------

    def wrap(self, node: fx.Node) -> _Value:
        return _Value(real=node)

    def unwrap(self, value: Any) -> Any:
        if not isinstance(value, _Value):
            return value
        if value.real is None:
            assert value.quantized is not None
            value.real = self.graph.call_method("dequantize", (value.quantized,))
        return value.real

    def _grid_of(self, arg: Any) -> TensorGrid | None:
        value = self.values.get(arg)
        return value.grid if isinstance(value, _Value) else None

    def _quantized(self, arg: Any) -> fx.Node:
        value = self.values[arg]
        assert isinstance(value, _Value)
        assert value.grid is not None
        if value.quantized is None:
            assert value.real is not None
            value.quantized = self._quantize(value.real, value.grid)
        return value.quantized


def _reshaping(node: fx.Node) -> fx.Node:
    """The convolutions of int8 write channels last, which no ``view`` can take for something else."""
    if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
        node.target = "reshape"
    return node


# What torch computes of tensors with the usual strides only, and not of the channels last that int8 convolutions write.
_OF_USUAL_STRIDES = frozenset({"kron"})
_ON_QUANTIZED = frozenset(
    {
        "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "max_pool2d", "contiguous",
        "relu", "detach",
    }
)  # fmt: skip


def _runs_on_quantized(node: fx.Node) -> bool:
    name = ops.operation_of(node)
    if ops.returns_indices(node) or (len(node.all_input_nodes) != 1 and name not in ("view", "reshape")):
        return False
    return name in _ON_QUANTIZED
