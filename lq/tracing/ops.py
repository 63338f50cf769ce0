"""What a graph node does, as far as quantization cares: tables of operations, not code.

Nodes of a recorded call and of a captured graph are known by the names of their operations, see
:func:`lq.tracing.functions.operation`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx, nn

from lq.compat.torch_private import OpOverload
from lq.tracing.functions import operation

# Operations whose output holds only values of their input, so that it lies on the same grid.
SAME_GRID = frozenset(
    {
        "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind", "clone",
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
        "max_pool3d_with_indices", "channel_shuffle", "narrow", "select", "swapaxes", "movedim", "roll",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "dropout", "dropout1d", "dropout2d", "dropout3d",
        "pixel_shuffle", "pixel_unshuffle", "view", "contiguous", "expand", "repeat", "unflatten", "T", "mT", "detach",
        "getitem", "flip", "native_channel_shuffle", "tensor_split", "swapdims", "moveaxis", "view_as", "reshape_as",
        "expand_as", "ravel", "quant_stub", "dequant_stub", "index",
    }
)  # fmt: skip
_MAXIMA = frozenset(name for name in SAME_GRID if "max_pool" in name)
_SEVERAL = frozenset({"chunk", "split", "unbind", "tensor_split"})
_AVERAGES = frozenset(
    {
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "mean",
    }
)  # fmt: skip
# Operations of one tensor that have no int8 kernel here but are cheap enough to sit between two quantized ones.
CHEAP = _AVERAGES | {
    "hardswish", "hardsigmoid", "sigmoid", "silu", "leaky_relu", "tanh", "elu", "hardtanh", "relu6", "interpolate",
}  # fmt: skip


# What a recorded call is known by: see lq.tracing.recording.Seen.
SEEN = "lq_seen"
CALLED = "lq_called"  # its arguments and keywords as they were given, before the first got its place


def recorded(node: fx.Node) -> str:
    """The operation of a recorded call, "" for other nodes.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(nn.ReLU6()))
        >>> [recorded(node) for node in graph.nodes]
        ['', 'hardtanh', '']
    """
    seen = node.meta.get(SEEN)
    return "" if seen is None else str(seen.operation)


def operation_of(node: fx.Node) -> str:
    """The operation that a node calls, "" for inputs, constants, modules and the output.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: (x + x).relu_()).graph
        >>> [operation_of(node) for node in graph.nodes]
        ['', 'add', 'relu', '']
    """
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    return recorded(node) or (operation(node.target) if node.op == "call_function" else "")


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a ``call_module`` node calls.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> [module_of(node, dict(net.named_modules())) for node in fx.symbolic_trace(net).graph.nodes]
        [None, ReLU(), None]
    """
    return modules.get(str(node.target)) if node.op == "call_module" else None


def relu_kind(node: fx.Node) -> str | None:
    """Which of "relu" and "relu6" the node is, in any of their spellings; ``None`` if neither.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: x.clamp(0, 6).clamp(min=0).clamp(1, 6)).graph
        >>> [relu_kind(node) for node in graph.nodes]
        [None, 'relu6', 'relu', None, None]
    """
    name = operation_of(node)
    if name in ("relu", "relu6"):
        return name
    if name not in ("hardtanh", "clamp", "clip", "clamp_min"):
        return None
    low_name, high_name = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get(low_name, defaults[0])
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get(high_name, defaults[1])
    if (low, high) == (0.0, 6.0):
        return "relu6"
    return "relu" if (low, high) == (0.0, None) else None


def is_same_grid(node: fx.Node) -> bool:
    """Whether the node's output, of several the first, holds only values of its first input (in evaluation).

    A maximum that is there to drop what a mask or a padding put in, as -1e9 or -inf, does not count: the range of its
    input is that of the numbers that it drops.

    Example:
        >>> from torch.nn import functional as F
        >>> graph = fx.symbolic_trace(lambda x: F.max_pool2d(F.pad(x.flatten(1), (1, 1), value=-1e9), 2)).graph
        >>> {operation_of(node): is_same_grid(node) for node in graph.nodes if operation_of(node)}
        {'flatten': True, 'pad': False, 'max_pool2d': False}
    """
    if returns_indices(node) or _drops_a_filling(node):
        return False
    if node.target is operator.getitem and not recorded(node) and isinstance(node.args[1], int):
        if gives_places(node.args[0]) and node.args[1] != 0:  # type: ignore[arg-type]
            return False
        # What it selects from may be no tensor: the outputs of an LSTM, a tuple among the inputs.
        return is_same_grid(node.args[0])  # type: ignore[arg-type]
    return operation_of(node) in SAME_GRID


def _drops_a_filling(node: fx.Node) -> bool:
    """Whether the node is a maximum of a tensor into which other values were put."""
    if operation_of(node) not in _MAXIMA:
        return False
    source = node.args[0]
    while isinstance(source, fx.Node) and operation_of(source) in SAME_GRID and source.args:
        source = source.args[0]
    return isinstance(source, fx.Node) and _fills(source)


def _fills(node: fx.Node) -> bool:
    """Whether the node puts values in that may be far from those of its input."""
    name = operation_of(node)
    if name != "pad":
        return name in ("masked_fill", "where")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return value not in (None, 0)


def returns_several(node: fx.Node) -> bool:
    """Whether the node returns parts of its input as a tuple or list.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: x.chunk(2)[1]).graph
        >>> [returns_several(node) for node in graph.nodes]
        [False, True, False, False]
    """
    return operation_of(node) in _SEVERAL


def returns_indices(node: fx.Node) -> bool:
    """Whether the node is a maximum that also says where it was.

    Example:
        >>> from torch.nn import functional as F
        >>> graph = fx.symbolic_trace(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]).graph
        >>> [returns_indices(node) for node in graph.nodes]
        [False, True, False, False]
    """
    return node.kwargs.get("return_indices", False) is True or node.args[6:7] == (True,)


def gives_places(node: fx.Node) -> bool:
    """Whether the node, of a captured graph, is a maximum that is a pair of values and places there.

    Example:
        >>> import torch
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> aten = torch.ops.aten
        >>> pools = aten.max_pool2d_with_indices.default, aten.max_pool2d.default
        >>> [gives_places(graph.call_function(pool, (x, [2, 2]))) for pool in pools]
        [True, False]
    """
    name = operation_of(node)
    is_pair = name.startswith("adaptive_max_pool") or name.endswith("_with_indices")
    return is_pair and isinstance(node.target, OpOverload)


def stays_in_range(node: fx.Node) -> bool:
    """Whether no value of the node's output lies outside of the range of its inputs' values.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: (x.mean() * 2).flatten()).graph
        >>> [stays_in_range(node) for node in graph.nodes]
        [False, True, False, True, False]
    """
    return operation_of(node) in _AVERAGES | {"cat"} or is_same_grid(node)


def is_scaling(node: fx.Node) -> bool:
    """Whether the node multiplies a tensor by a number, or divides it by one.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: (x * 0.5) / x).graph
        >>> [is_scaling(node) for node in graph.nodes]
        [False, True, False, False]
    """
    if operation_of(node) not in ("mul", "div") or len(node.args) != 2:
        return False
    return isinstance(node.args[0], fx.Node) and isinstance(node.args[1], (int, float))


def is_cheap(node: fx.Node) -> bool:
    """Whether the node is a cheap float operation of one tensor (pooling, hardswish, ...).

    Example:
        >>> graph = fx.symbolic_trace(lambda x: x.sigmoid().softmax(-1)).graph
        >>> [is_cheap(node) for node in graph.nodes]
        [False, True, False, False]
    """
    return operation_of(node) in CHEAP


def reads_no_values(node: fx.Node) -> bool:
    """Whether the node asks for the shape, dtype or device of a tensor only.

    Example:
        >>> graph = fx.symbolic_trace(lambda x: x.view(x.size(0), -1) * x.ndim).graph
        >>> [node for node in graph.nodes if reads_no_values(node)]
        [size, getattr_1]
    """
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension", "stride", "is_contiguous", "get_device")
    return node.op == "call_function" and node.target is getattr and node.args[1] in _PROPERTIES


_PROPERTIES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"})


def joined_tensors(node: fx.Node) -> list[fx.Node] | None:
    """Inputs of an addition or multiplication of two tensors or of a concatenation, else ``None``.

    Example:
        >>> graph = fx.symbolic_trace(lambda x, y: (x + y) * 2).graph
        >>> [joined_tensors(node) for node in graph.nodes]
        [None, None, [x, y], None, None]
    """
    name = operation_of(node)
    if recorded(node) and any(n.meta.get("constant") for n in node.all_input_nodes):
        return None  # a parameter is no activation
    if name in ("add", "mul") and len(node.args) == 2 and not node.kwargs:
        both = [a for a in node.args if isinstance(a, fx.Node)]
        return both if len(both) == 2 else None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    if name == "cat" and isinstance(tensors, (list, tuple)):
        parts = [a for a in tensors if isinstance(a, fx.Node)]
        return parts if len(parts) == len(tensors) else None
    return None
