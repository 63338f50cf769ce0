"""What a graph node does, as far as quantization cares: tables, not code."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F

RELU_MODULES: Mapping[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
RELU_FUNCTIONS: Mapping[object, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    "relu": "relu",
    "relu_": "relu",
}
ADD = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
MUL = frozenset({operator.mul, operator.imul, torch.mul, "mul", "mul_"})
CAT = frozenset({torch.cat, torch.concat, torch.concatenate})

# Operations whose output holds only values of their input, so that it lies on the same grid.
SAME_GRID_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    nn.UpsamplingNearest2d,
)
SAME_GRID_FUNCTIONS: frozenset[object] = frozenset(
    {
        torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
        torch.split, torch.unbind, torch.clone, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
        torch.channel_shuffle, torch.narrow, torch.select, torch.swapaxes, torch.movedim, torch.roll,
        torch.adaptive_max_pool1d, operator.getitem,
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool2d, F.dropout, F.dropout1d, F.dropout2d,
        F.dropout3d, F.pixel_shuffle, F.pixel_unshuffle,
        "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind",
        "contiguous", "clone", "narrow", "select", "expand", "repeat", "roll", "swapaxes", "movedim", "unflatten",
        "T", "mT", "detach",
    }
)  # fmt: skip
SAME_GRID = frozenset(
    {
        "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind", "clone",
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
        "max_pool3d_with_indices", "channel_shuffle", "narrow", "select", "swapaxes", "movedim", "roll",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "dropout", "dropout1d", "dropout2d", "dropout3d",
        "pixel_shuffle", "pixel_unshuffle", "view", "contiguous", "expand", "repeat", "unflatten", "T", "mT", "detach",
        "getitem", "flip", "native_channel_shuffle", "tensor_split", "swapdims", "moveaxis", "view_as", "reshape_as",
        "expand_as", "ravel", "quant_stub", "dequant_stub",
    }
)  # fmt: skip
STOCHASTIC_DEPTH = frozenset({"StochasticDepth", "DropPath"})


# What a recorded call is known by: see lq.tracing.recording.Seen.
SEEN = "lq_seen"
CALLED = "lq_called"  # its arguments and keywords as they were given, before the first got its place


def recorded(node: fx.Node) -> str:
    """The operation of a recorded call, "" for other nodes."""
    seen = node.meta.get(SEEN)
    return "" if seen is None else str(seen.operation)


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a ``call_module`` node calls."""
    return modules.get(str(node.target)) if node.op == "call_module" else None


def relu_kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[str, bool] | None:
    """``("relu" | "relu6", inplace)`` if the node is a ReLU or ReLU6, in any of their spellings."""
    module = module_of(node, modules)
    if module is not None:
        kind = RELU_MODULES.get(type(module))
        if kind is None and type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0.0, 6.0):
            kind = "relu6"
        return (kind, bool(getattr(module, "inplace", False))) if kind else None
    if recorded(node):
        return _recorded_relu(node)
    if node.op in ("call_function", "call_method"):
        if node.target in RELU_FUNCTIONS:
            inplace = node.kwargs.get("inplace", node.args[1] if len(node.args) > 1 else False)
            return RELU_FUNCTIONS[node.target], bool(inplace) or str(node.target).endswith("_")
        if node.target in (F.hardtanh, torch.clamp, "clamp") and _bounds(node) == (0.0, 6.0):
            return "relu6", False
        if node.target in (torch.clamp, "clamp") and _bounds(node) == (0.0, math.inf):
            return "relu", False
    return None


def _recorded_relu(node: fx.Node) -> tuple[str, bool] | None:
    name = recorded(node)
    if name in ("relu", "relu6"):
        return name, False
    if name not in ("hardtanh", "clamp", "clip", "clamp_min"):
        return None
    low_name, high_name = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get(low_name, defaults[0])
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get(high_name, defaults[1])
    if (low, high) == (0.0, 6.0):
        return "relu6", False
    return ("relu", False) if (low, high) == (0.0, None) else None


def _bounds(node: fx.Node) -> tuple[object, object]:
    low_name, high_name = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get(low_name)
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get(high_name)
    return low, math.inf if high is None and low is not None else high


def is_same_grid(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node's output holds only values of its first input (in evaluation)."""
    if returns_indices(node, modules):
        return False
    module = module_of(node, modules)
    if module is not None:
        return isinstance(module, SAME_GRID_MODULES) or type(module).__name__ in STOCHASTIC_DEPTH
    if recorded(node):
        return recorded(node) in SAME_GRID
    if node.op in ("call_function", "call_method"):
        if node.target is operator.getitem and isinstance(node.args[1], int):
            # What it selects from may be no tensor: the outputs of an LSTM, a tuple among the inputs.
            return is_same_grid(node.args[0], modules)  # type: ignore[arg-type]
        if node.target in SAME_GRID_FUNCTIONS:
            return True
        return getattr(node.target, "__name__", "") == "stochastic_depth"
    return False


def returns_indices(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node is a maximum that also says where it was."""
    module = module_of(node, modules)
    if module is not None:
        return getattr(module, "return_indices", False) is True
    return node.kwargs.get("return_indices", False) is True or node.args[6:7] == (True,)


def stays_in_range(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether no value of the node's output lies outside of the range of its inputs' values.

    Example:
        >>> net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 1, 1))
        >>> [stays_in_range(n, dict(net.named_modules())) for n in fx.symbolic_trace(net).graph.nodes]
        [False, True, False, False]
    """
    module = module_of(node, modules)
    if module is not None:
        return isinstance(module, _AVERAGE_MODULES) or is_same_grid(node, modules)
    return recorded(node) in _AVERAGES or node.target in _AVERAGE_FUNCTIONS | CAT or is_same_grid(node, modules)


_AVERAGES = frozenset(
    {
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "mean", "cat",
    }
)  # fmt: skip
_AVERAGE_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_AVERAGE_FUNCTIONS: frozenset[object] = frozenset(
    {
        F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        torch.mean, "mean",
    }
)  # fmt: skip


def reads_no_values(node: fx.Node) -> bool:
    """Whether the node asks for the shape, dtype or device of a tensor only."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension", "stride", "is_contiguous", "get_device")
    return node.op == "call_function" and node.target is getattr and node.args[1] in _PROPERTIES


_PROPERTIES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"})


def joined_tensors(node: fx.Node) -> list[fx.Node] | None:
    """Inputs of an addition or multiplication of two tensors or of a concatenation, else ``None``."""
    if node.op not in ("call_function", "call_method"):
        return None
    if recorded(node) and any(n.meta.get("constant") for n in node.all_input_nodes):
        return None  # a parameter is no activation
    if node.target in ADD | MUL and len(node.args) == 2 and not node.kwargs:
        both = [a for a in node.args if isinstance(a, fx.Node)]
        return both if len(both) == 2 else None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    if node.target in CAT and isinstance(tensors, (list, tuple)):
        parts = [a for a in tensors if isinstance(a, fx.Node)]
        return parts if len(parts) == len(tensors) else None
    return None


# Operations of one tensor that have no int8 kernel here but are cheap enough to sit between two quantized ones.
CHEAP_MODULES: tuple[type[nn.Module], ...] = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.ELU, nn.Hardtanh, nn.ReLU6,
)  # fmt: skip
CHEAP_FUNCTIONS: frozenset[object] = frozenset(
    {
        F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        torch.mean, "mean", F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, "sigmoid", F.silu, F.leaky_relu,
        F.tanh, torch.tanh, "tanh", F.elu, F.hardtanh, F.relu6, F.interpolate,
    }
)  # fmt: skip


CHEAP = frozenset(
    {
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "mean", "hardswish", "hardsigmoid", "sigmoid", "silu", "leaky_relu", "tanh", "elu", "hardtanh", "relu6",
        "interpolate",
    }
)  # fmt: skip


def is_cheap(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node is a cheap float operation of one tensor (pooling, hardswish, ...)."""
    if recorded(node):
        return recorded(node) in CHEAP
    module = module_of(node, modules)
    if module is not None:
        # timm wraps these in classes of its own, with the same names.
        return isinstance(module, CHEAP_MODULES) or type(module).__name__ in (
            "SelectAdaptivePool2d",
            "HardSwish",
            "Swish",
        )
    return node.op in ("call_function", "call_method") and node.target in CHEAP_FUNCTIONS
