"""Which recorded calls are layers to quantize, which BatchNorm each of them takes in, and why others stay float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from lq.compat.torch_private import BatchNorm
from lq.config.qconfig import QConfig
from lq.config.specs import WeightSpec
from lq.core.modules import QAT_LAYERS
from lq.core.own_class import own_class
from lq.tracing.functions import is_frozen_batch_norm
from lq.tracing.layer_calls import LAYERS, argument, is_layer
from lq.tracing.ops import SEEN, reads_no_values, recorded
from lq.tracing.plan import LayerPlan
from lq.tracing.recording import Seen

_NORM_DIMS: Mapping[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_LAYER_MODULES: tuple[type[nn.Module], ...] = tuple(QAT_LAYERS)
RECURRENT_LAYERS = (nn.RNNBase, nn.RNNCellBase)
_GROUPS = {"conv_transpose1d": 6, "conv_transpose2d": 6, "conv_transpose3d": 6}


@dataclass(frozen=True)
class Layer:
    """A layer to quantize.

    Args:
        node: its call.
        name: that it has in the plan.
        module: whose layer it is.
        kind: the operation.
        input: what it reads.
        bn: the BatchNorm call behind it.
        spec: the grid that a backend wants.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> (layer,), _ = LayerFinder(read_calls(net)[0], net, QConfig()).find()
        >>> layer.name, layer.kind, layer.input, layer.last is layer.bn
        ('0', 'conv2d', input_1, True)
    """

    node: fx.Node
    name: str
    module: nn.Module
    kind: str
    input: fx.Node
    bn: fx.Node | None = None
    spec: WeightSpec | None = None

    @property
    def last(self) -> fx.Node:
        """The node whose value is the layer's output."""
        return self.bn or self.node

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution that is not transposed."""
        return self.kind in ("conv1d", "conv2d", "conv3d")

    def stays_float(self, reason: str) -> LayerPlan:
        """The row of the plan if it is not quantized."""
        return LayerPlan(self.name, LAYERS[self.kind].kind.__name__, reason=reason)


class LayerFinder:
    """Reads layers off a recorded call.

    Args:
        graph: of :class:`lq.tracing.recording.Recorder`.
        root: the module that was called.
        qconfig: which layers are wanted.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> layers, rows = LayerFinder(read_calls(net)[0], net, QConfig(exclude=["2"])).find()
        >>> [layer.name for layer in layers], rows[0].name, rows[0].reason
        (['0'], '2', "exclude '2'")
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, qconfig: QConfig) -> None:
        self.graph, self.qconfig = graph, qconfig
        self.modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
        self.nodes = [node for node in graph.nodes if is_layer(node)]
        self.names: dict[fx.Node, str] = {}
        self._named: Counter[str] = Counter()
        seen = [seen_of(node) for node in graph.nodes if SEEN in node.meta]
        self._counts = Counter((one.operation, one.stack[-1]) for one in seen)

    def find(self) -> tuple[list[Layer], list[LayerPlan]]:
        """The layers to quantize, and the rows of those that stay float, in execution order."""
        layers: list[Layer] = []
        floats: dict[str, LayerPlan] = {}
        for node in self.nodes:
            name, module = self._name(node), self._module(node)
            self.names[node] = name
            call = LAYERS[recorded(node)]
            reason = self._why_float(node) or self.qconfig.excludes(name, module)
            source = argument(call.input, node.args, node.kwargs)
            if reason is None and isinstance(source, fx.Node):
                norm = self._batch_norm_behind(node)
                layers.append(Layer(node, name, module, recorded(node), source, norm))
            else:
                floats.setdefault(name, LayerPlan(name, call.kind.__name__, reason=reason or "its input is not known"))
        quantized = {layer.name for layer in layers}
        return layers, [row for name, row in floats.items() if name not in quantized]

    def others(self, known: set[str]) -> list[LayerPlan]:
        """Rows of modules with layers that no recorded call has run, and of recurrent ones."""
        rows = []
        for name, module in self.modules.items():
            if name in known:
                continue
            weight = f"{name}.weight".lstrip(".")
            if isinstance(module, RECURRENT_LAYERS):
                if not any(own.startswith(f"{weight}_") for own in known):
                    rows.append(LayerPlan(name, own_class(module).__name__, reason=self._why_not_recurrent(name)))
            elif name and isinstance(module, _LAYER_MODULES) and weight not in known:
                reason = "it is not called; operations that read its weight run in float"
                rows.append(LayerPlan(name, own_class(module).__name__, reason=reason))
        return rows

    def _why_not_recurrent(self, name: str) -> str:
        if self.qconfig.recurrence == "float":
            return "recurrent layers compute in float unless QConfig(recurrence='int8') says otherwise"
        reason = self.qconfig.excludes(name, self.modules[name])
        return reason or "it is excluded, not called, called with a packed sequence, or projects its state"

    # ---- one call -----------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> nn.Module:
        """Whose layer it is: the module that calls it, or the one that holds the weight."""
        owner: nn.Module = self.modules[seen_of(node).stack[-1]]
        if isinstance(owner, _LAYER_MODULES):
            return owner
        weight = weight_of(node)
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            return self.modules.get(str(weight.target).rpartition(".")[0], owner)
        return owner

    def _name(self, node: fx.Node) -> str:
        place = seen_of(node).stack[-1]
        if place and isinstance(self.modules[place], _LAYER_MODULES):
            return place
        weight = weight_of(node)
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            holder, _, last = str(weight.target).rpartition(".")
            if last == "weight" and holder:
                return holder
            if isinstance(self.modules[place], RECURRENT_LAYERS):  # one name for all steps
                return str(weight.target)
        wanted = f"{place}.{recorded(node)}".lstrip(".")
        self._named[wanted] += 1
        return wanted if self._named[wanted] == 1 else f"{wanted}_{self._named[wanted] - 1}"

    def _why_float(self, node: fx.Node) -> str | None:
        seen, weight = seen_of(node), weight_of(node)
        if seen.opaque:
            return f"it runs inside of {seen.opaque}"
        if not isinstance(weight, fx.Node) or not weight.meta.get("constant"):
            return "its weight depends on the input"
        if not weight.meta.get("dtype", torch.float32).is_floating_point:
            return "its weight is no floating-point tensor"
        bias = argument(LAYERS[recorded(node)].bias, node.args, node.kwargs)
        if isinstance(bias, fx.Node) and not bias.meta.get("constant"):
            return "its bias depends on the input"
        if recorded(node) == "addmm" and any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
            return "addmm() with alpha or beta is no linear layer"
        return _shape_of_no_linear_layer(node, weight, bias) or _padding_without_kernel(node, weight)

    def _batch_norm_behind(self, node: fx.Node) -> fx.Node | None:
        """The BatchNorm call that is a layer's only reader, if it can be one with it."""
        users = [user for user in node.users if not reads_no_values(user)]
        if len(users) != 1 or recorded(users[0]) != "batch_norm" or users[0].args[:1] != (node,):
            return None
        user, seen = users[0], seen_of(users[0])
        norm: Any = self.modules[seen.stack[-1]]
        frozen = seen.whole and is_frozen_batch_norm(norm)
        tracked = isinstance(norm, BatchNorm) and norm.track_running_stats and norm.running_mean is not None
        if not (frozen or tracked) or self._calls_of(seen) != 1 or self._calls_of(seen_of(node)) != 1:
            return None
        if recorded(node).startswith("conv_transpose") and _groups(node) != 1:
            return None  # its weight has no axis of all output channels
        shape, weight = (n.meta.get("shape") for n in (node, weight_of(node)))
        dims = _NORM_DIMS.get(own_class(norm), 0) if shape is None else len(shape)
        if recorded(node) in ("addmm", "matmul", "mm") or (dims and weight is not None and dims != len(weight)):
            return None
        return user

    def _calls_of(self, seen: Seen) -> int:
        """How many times the operation is called in the module that calls it."""
        return self._counts[seen.operation, seen.stack[-1]]


def seen_of(node: fx.Node) -> Seen:
    """What was recorded of a call.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(nn.ReLU()))
        >>> seen_of(graph.find_nodes(op="call_function", target=torch.nn.functional.relu)[0]).stack
        ('', '0')
    """
    seen: Seen = node.meta[SEEN]
    return seen


def weight_of(node: fx.Node) -> Any:
    """The weight that a recorded call of a layer was given.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> graph, *_ = read_calls(nn.Sequential(nn.Linear(4, 2)))
        >>> weight_of(graph.find_nodes(op="call_function", target=torch.nn.functional.linear)[0]).target
        '0.weight'
    """
    return argument(LAYERS[recorded(node)].weight, node.args, node.kwargs)


def _groups(node: fx.Node) -> Any:
    at = _GROUPS[recorded(node)]
    return node.args[at] if len(node.args) > at else node.kwargs.get("groups", 1)


def _shape_of_no_linear_layer(node: fx.Node, weight: fx.Node, bias: Any) -> str | None:
    """Why no linear layer has such a weight or bias, though the function takes it; convolutions take no others."""
    call, shape = LAYERS[recorded(node)], weight.meta.get("shape")
    if call.kind is not nn.Linear or shape is None:
        return None
    if len(shape) != 2:
        return f"its weight has the shape {shape}, and that of a linear layer has two dimensions"
    wanted, given = (shape[call.channel_axis],), bias.meta.get("shape") if isinstance(bias, fx.Node) else None
    if given is not None and given != wanted:
        return f"its bias has the shape {given}, and that of a linear layer would have {wanted}"
    return None


def _padding_without_kernel(node: fx.Node, weight: fx.Node) -> str | None:
    padding = node.args[4] if len(node.args) > 4 else node.kwargs.get("padding")
    if padding != "same" or recorded(node).startswith("conv_transpose"):
        return None
    dilation = node.args[5] if len(node.args) > 5 else node.kwargs.get("dilation", 1)
    kernel = weight.meta["shape"][2:]
    dilations = dilation if isinstance(dilation, (tuple, list)) else (dilation,) * len(kernel)
    if any(int(d) * (k - 1) % 2 for d, k in zip(dilations, kernel, strict=True)):
        return "padding='same' with this even kernel pads one side more; there is no int8 kernel for that"
    return None
