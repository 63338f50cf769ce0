"""``convert``: a prepared module becomes a model that computes with int8 kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lq.backends.int8 import Int8Layer, has_kernel, quantized_engine
from lq.backends.prepare import qconfig_of, state_of
from lq.core.fake_quantize import FakeQuantize, ModeSwitch, TrainingFlag
from lq.core.functional import EPS
from lq.core.modules import QAT_LAYERS, QATLayer
from lq.core.state import QATState
from lq.deprecations import quiet_torchscript
from lq.tracing import ops

_ROOM = 127 - -128 + 1


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Build the int8 model that a prepared module has been emulating; ``prepared`` is left as it is.

    Args:
        prepared: from :func:`lq.prepare`, on any device, with ranges (it has trained or calibrated).

    Returns:
        a GraphModule on the CPU, in evaluation mode, float tensors in and out, int8 kernels inside.

    Raises:
        ValueError: if it is not prepared or has fake quantizers that never saw a batch.

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
    state = state_of(prepared)
    finite = torch.isfinite(state.min_val).tolist()  # not state.ready(): a slot may have run in another process only
    unseen = [name for name, has_range in zip(state.names, finite, strict=True) if not has_range]
    if len(unseen) == len(state.names):
        raise ValueError(
            "No fake quantizer has seen a batch, so there are no ranges to convert with: "
            "train with observers on, or run calibration batches in training mode, first."
        )
    engine = quantized_engine(qconfig_of(prepared).resolved_engine)
    with engine, quiet_torchscript(), torch.inference_mode(False), torch.no_grad():
        source = copy.deepcopy(prepared).cpu().float().eval()
        return _Lowering(source, set(unseen)).run()


@dataclass
class _Value:
    """What the new graph knows of one old value: a float node, a quantized node, and the grid that it lies on."""

    real: fx.Node | None = None
    quantized: fx.Node | None = None
    grid: tuple[float, int] | None = None
    parts: dict[str, Any] = field(default_factory=dict)


class _Lowering:
    def __init__(self, source: fx.GraphModule, unseen: set[str]) -> None:
        self.source, self.unseen = source, unseen
        self.modules = dict(source.named_modules())
        self.state: QATState = state_of(source)
        scale, zero_point = self.state.scale_zero_point()
        self.scales, self.zero_points = scale.tolist(), [int(z) for z in zero_point.tolist()]
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self._real))
            elif not self._emitted_by_its_quantizer(node):
                self.values[node] = self._emit(node)
        converted = fx.GraphModule(self.root, self.graph, class_name=f"Int8{type(self.source).__name__}")
        converted.graph.eliminate_dead_code()
        converted.delete_all_unused_submodules()
        converted.recompile()
        return converted.eval()

    # ---- one node -----------------------------------------------------------------------------------------------

    def _emit(self, node: fx.Node) -> _Value | Any:
        module = ops.module_of(node, self.modules)
        if isinstance(module, FakeQuantize):
            return self._quantizer(node, module)
        if isinstance(module, (QATState, ModeSwitch)):
            return self._alias(node.args[-1])
        if isinstance(module, TrainingFlag):
            return False
        if isinstance(module, QATLayer):
            return self._float_layer(node, module)
        if node.op == "placeholder":
            return _Value(real=self.graph.node_copy(node))
        if node.op == "get_attr":
            return self._get_attr(node)
        if ops.is_same_grid(node, self.modules) or self._is_relu(node):
            return self._same_grid(node)
        return _Value(real=self._copy(node, self._real))

    def _alias(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, fx.Node) else _Structure(arg)

    def _quantizer(self, node: fx.Node, module: FakeQuantize) -> _Value:
        source = cast(fx.Node, node.args[0])
        name = str(node.target).rpartition(".")[2]
        if name in self.unseen:
            return self._never_ran(source, module)
        scale, zero_point, clamp = self._qparams(module)
        kernel = self._kernel(source, module.activation != "none", scale, zero_point)
        if kernel is None:
            x = self._activated(self._real(source), module.activation)
            kernel = self.graph.call_function(torch.quantize_per_tensor, (x, scale, zero_point, torch.quint8))
        if clamp is not None:
            kernel = self.graph.call_function(torch.clamp, (kernel, *clamp))
        return _Value(quantized=kernel, grid=(scale, zero_point))

    def _qparams(self, module: FakeQuantize) -> tuple[float, int, tuple[float, float] | None]:
        """Scale, zero point on the kernels' unsigned grid, and the clamp that a narrower grid needs."""
        spec = self.state.specs[module.slot]
        scale, zero_point = self.scales[module.slot], self.zero_points[module.slot]
        if module.scale is not None and float(module.scale) != 0.0:
            scale = max(float(module.scale), EPS)
        shift = -spec.quant_min if spec.quant_min < 0 else 0
        zero_point += shift
        lowest, highest = spec.quant_min + shift, spec.quant_max + shift
        if spec.symmetric:  # TensorRT's grid: its zero has to stay in the middle whatever the number of levels
            shift = 128
            zero_point, lowest, highest = 128, spec.quant_min + 128, spec.quant_max + 128
        if (lowest, highest) == (0, _ROOM - 1):
            return scale, zero_point, None
        return scale, zero_point, ((lowest - zero_point) * scale, (highest - zero_point) * scale)

    def _kernel(self, source: fx.Node, relu: bool, scale: float, zero_point: int) -> fx.Node | None:
        """The int8 kernel that computes ``source`` and writes it on this grid, if there is one."""
        module = ops.module_of(source, self.modules)
        if isinstance(module, QATLayer) and source not in self.values:
            x = self._quantized(source.args[0])
            input_grid = self.values[cast(fx.Node, source.args[0])].grid
            layer = Int8Layer(module, self._batch_norm(source), relu, scale, zero_point, input_grid)
            return self._call(str(source.name), layer, x)
        inputs = ops.joined_tensors(source)
        if inputs is None or source in self.values:
            return None
        suffix = "_relu" if relu else ""
        quantized = [self._quantized(n) for n in inputs]
        if source.target in ops.CAT:
            dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
            kernel = getattr(torch.ops.quantized, f"cat{suffix}")
            return self.graph.call_function(kernel, (quantized, dim, scale, zero_point))
        kernel = getattr(torch.ops.quantized, ("add" if source.target in ops.ADD else "mul") + suffix)
        return self.graph.call_function(kernel, (*quantized, scale, zero_point))

    def _emitted_by_its_quantizer(self, node: fx.Node) -> bool:
        """Layers and joins whose every input is quantized run inside the kernel that writes their grid."""
        if len(node.users) != 1:
            return False
        user = ops.module_of(next(iter(node.users)), self.modules)
        if not isinstance(user, FakeQuantize) or self.state.names[user.slot] in self.unseen:
            return False
        module = ops.module_of(node, self.modules)
        if isinstance(module, QATLayer):
            return has_kernel(module) and self._has_grid(node.args[0])
        joined = ops.joined_tensors(node)
        return joined is not None and all(self._has_grid(n) for n in joined)

    def _has_grid(self, arg: Any) -> bool:
        value = self.values.get(arg)
        return isinstance(value, _Value) and value.grid is not None

    def _same_grid(self, node: fx.Node) -> _Value:
        inputs = [self.values[n] for n in node.all_input_nodes]
        first = self.values.get(cast(fx.Node, node.args[0])) if node.args else None
        on_grid = isinstance(first, _Value) and first.grid is not None
        relu = ops.relu_kind(node, self.modules)
        if relu is not None and relu[0] == "relu6":
            on_grid = False
        if not on_grid:
            return _Value(real=self._copy(node, self._real))
        assert isinstance(first, _Value)
        if _runs_on_quantized(node, self.modules) and len(inputs) >= 1:
            keep = lambda n: self._quantized(n) if n is node.args[0] else self._real(n)  # noqa: E731
            return _Value(quantized=self._copy(node, keep), grid=first.grid)
        return _Value(real=self._copy(node, self._real), grid=first.grid)

    def _never_ran(self, source: fx.Node, module: FakeQuantize) -> _Value:
        return _Value(real=self._activated(self._real(source), module.activation))

    def _float_layer(self, node: fx.Node, module: QATLayer) -> _Value:
        """A layer without a range, because it never ran in training: float, its weight on the trained grid."""
        bn = self._batch_norm(node)
        integers, scale, bias = module.integer_weight(bn)
        shaped = scale if scale.dim() == 0 else module._along_channels(scale)
        plain = copy.deepcopy(module)
        base = next(float_type for float_type, twin in QAT_LAYERS.items() if isinstance(module, twin))
        layer = nn.Module.__new__(base)
        layer.__dict__.update({k: v for k, v in plain.__dict__.items() if k != "state"})
        layer._parameters = {
            "weight": nn.Parameter(integers.float() * shaped, requires_grad=False),
            "bias": None if bias is None else nn.Parameter(bias.detach(), requires_grad=False),
        }
        return _Value(real=self._call(str(node.name), layer, self._real(cast(fx.Node, node.args[0]))))

    def _get_attr(self, node: fx.Node) -> Any:
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(self.source.get_submodule(owner), name)
        if isinstance(value, nn.Module):
            return value
        new_name = str(node.target).replace(".", "_")
        if not hasattr(self.root, new_name):
            if isinstance(value, torch.Tensor):
                self.root.register_buffer(new_name, value.detach())
            else:
                setattr(self.root, new_name, value)
        return _Value(real=self.graph.get_attr(new_name))

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _batch_norm(self, node: fx.Node) -> _BatchNorm | None:
        return cast(_BatchNorm, self.values[cast(fx.Node, node.args[1])]) if len(node.args) > 1 else None

    def _is_relu(self, node: fx.Node) -> bool:
        return ops.relu_kind(node, self.modules) is not None

    def _call(self, name: str, module: nn.Module, *args: Any) -> fx.Node:
        unique = name if not hasattr(self.root, name) else f"{name}_{len(self.root._modules)}"
        self.root.add_module(unique, module)
        return self.graph.call_module(unique, args)

    def _copy(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> fx.Node:
        new = self.graph.node_copy(node, value_of)
        if node.op == "call_module":
            name = str(node.target).replace(".", "_")
            if not hasattr(self.root, name):
                self.root.add_module(name, self.modules[str(node.target)])
            new.target = name
        return new

    def _activated(self, x: fx.Node, activation: str) -> fx.Node:
        if activation == "none":
            return x
        function = torch.nn.functional.relu if activation == "relu" else torch.nn.functional.relu6
        return self.graph.call_function(function, (x,))

    def _real(self, node: fx.Node) -> Any:
        value = self.values[node]
        if isinstance(value, _Structure):
            return fx.map_arg(value.content, self._real)
        if not isinstance(value, _Value):
            return value
        if value.real is None:
            assert value.quantized is not None
            value.real = self.graph.call_method("dequantize", (value.quantized,))
        return value.real

    def _quantized(self, arg: Any) -> fx.Node:
        value = self.values[arg]
        assert isinstance(value, _Value)
        assert value.grid is not None
        if value.quantized is None:
            assert value.real is not None
            value.quantized = self.graph.call_function(
                torch.quantize_per_tensor, (value.real, *value.grid, torch.quint8)
            )
        return value.quantized


@dataclass(frozen=True)
class _Structure:
    """A tuple or dict of old nodes."""

    content: Any


_QUANTIZED_MODULES = (nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU)
_QUANTIZED_FUNCTIONS = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.max_pool2d, torch.nn.functional.max_pool2d, torch.relu, torch.nn.functional.relu,
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "contiguous", "relu",
    "detach",
}  # fmt: skip


def _runs_on_quantized(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = ops.module_of(node, modules)
    if module is not None:
        return isinstance(module, _QUANTIZED_MODULES)
    if len(node.all_input_nodes) != 1 and node.target not in ("view", "reshape", torch.reshape):
        return False
    if node.target in (torch.chunk, "chunk"):
        return False
    return node.target in _QUANTIZED_FUNCTIONS
