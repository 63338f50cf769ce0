"""What every lowering of a prepared graph shares: the walk over it and the parts that only training needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from lq.backends.float_module import check_weights
from lq.backends.prepare import plan_of, state_of
from lq.compat.torch_private import BatchNorm
from lq.conversion.graph import as_graph
from lq.conversion.on_cpu import on_cpu_in_float32
from lq.conversion.tensor_grid import TensorGrid
from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QAT_LAYERS, QATLayer
from lq.core.state import QATState
from lq.tracing import ops
from lq.tracing.axes import Axes
from lq.tracing.names import free_name


@dataclass(frozen=True)
class _Structure:
    """A tuple or dict of old nodes."""

    content: Any


class Lowering:
    """Builds a new graph node by node; a subclass says what quantizers, QAT layers and other operations become.

    ``values`` maps each old node to whatever the subclass knows of it, which :meth:`real` turns into a float node.

    Args:
        prepared: from :func:`lq.prepare`, on any device, with ranges; it is left as it is.

    Raises:
        ValueError: if it is not prepared or has fake quantizers that never saw a batch.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq import calibrate
        >>> class Clamped(Lowering):
        ...     def quantizer(self, node, module):  # the ends of the grids are all that is left of the model
        ...         grid = self.grid(module)
        ...         return self.graph.call_function(torch.clamp, (self.real(node.args[0]), *grid.ends))
        ...     def layer(self, node, module):
        ...         return self.real(node.args[0])
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> _ = nn.init.ones_(net[0].weight)
        >>> _ = calibrate(prepare(net), [torch.tensor([[0.0], [2.0]])], show_progress=False)
        >>> Clamped(as_graph(net)).run()(torch.tensor([[5.0]]))
        tensor([[2.]])
    """

    prefix = ""

    def __init__(self, prepared: fx.GraphModule) -> None:
        self.unseen = _without_range(prepared)
        self.model = plan_of(prepared).model
        self.source = on_cpu_in_float32(prepared)
        self.modules = dict(self.source.named_modules())
        self.state: QATState = state_of(self.source)
        scale, zero_point = self.state.scale_zero_point()
        self._scales, self._zero_points = scale.tolist(), [int(z) for z in zero_point.tolist()]
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.values: dict[fx.Node, Any] = {}
        self._names: dict[str, str] = {}  # what is copied as it is, by its old name
        self._built: dict[Any, str] = {}

    # ---- for subclasses -----------------------------------------------------------------------------------------

    def quantizer(self, node: fx.Node, module: FakeQuantize) -> Any:
        """What a fake quantizer with a range becomes."""
        raise NotImplementedError

    def layer(self, node: fx.Node, module: QATLayer) -> Any:
        """What a QAT layer becomes."""
        raise NotImplementedError

    def operation(self, node: fx.Node) -> Any:
        """What any other operation becomes."""
        return self.wrap(self.copy(node, self.real))

    def skips(self, node: fx.Node) -> bool:
        """Whether a later node emits this one."""
        return False

    def wrap(self, node: fx.Node) -> Any:
        """The value for a new node with a float result."""
        return node

    def unwrap(self, value: Any) -> Any:
        """The float node of a value."""
        return value

    # ---- the walk -----------------------------------------------------------------------------------------------

    def run(self) -> fx.GraphModule:
        """The new module, in evaluation mode on the CPU."""
        for node in self.source.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.real))
            elif not self.skips(node):
                self.values[node] = self._emit(node)
        lowered = fx.GraphModule(self.root, self.graph, class_name=f"{self.prefix}{self.model}")
        lowered.graph.eliminate_dead_code()
        lowered.delete_all_unused_submodules()
        lowered.recompile()
        lowered.meta.update(self.source.meta)  # such as the only batch that it takes
        return lowered.eval()

    def _emit(self, node: fx.Node) -> Any:
        module = ops.module_of(node, self.modules)
        if isinstance(module, FakeQuantize):
            if self.state.names[module.slot] in self.unseen:
                return self.wrap(self.activated(self.real(cast(fx.Node, node.args[0])), module.activation))
            return self.quantizer(node, module)
        if isinstance(module, QATState):
            arg = node.args[-1]
            return self.values[arg] if isinstance(arg, fx.Node) else _Structure(arg)
        if isinstance(module, QATLayer):
            return self.layer(node, module)
        if node.op == "placeholder":
            return self.wrap(self.graph.node_copy(node))
        return self._attribute(node) if node.op == "get_attr" else self.operation(node)

    def _attribute(self, node: fx.Node) -> Any:
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(self.source.get_submodule(owner), name)
        if isinstance(value, nn.Module):
            return value
        if str(node.target) not in self._names:
            new_name = self._new_name(node)
            if isinstance(value, torch.Tensor):
                self.root.register_buffer(new_name, value.detach())
            else:
                setattr(self.root, new_name, value)
        return self.wrap(self.graph.get_attr(self._names[str(node.target)]))

    def _new_name(self, node: fx.Node) -> str:
        name = self._names[str(node.target)] = _free_name(self.root, str(node.target).replace(".", "_"))
        return name

    # ---- helpers ------------------------------------------------------------------------------------------------

    def grid(self, module: FakeQuantize) -> TensorGrid:
        """Where a fake quantizer has rounded to."""
        spec, scale = self.state.specs[module.slot], self._scales[module.slot]
        if module.learned_scale is not None:
            scale = float(module.learned_scale(scale))
        return TensorGrid(scale, self._zero_points[module.slot], spec.quant_min, spec.quant_max)

    def batch_norm(self, node: fx.Node) -> BatchNorm | None:
        """The BatchNorm that a QAT layer has absorbed."""
        return cast(BatchNorm, self.values[cast(fx.Node, node.args[1])]) if len(node.args) > 1 else None

    def real(self, node: fx.Node) -> Any:
        """The new float node, or constant, for an old node."""
        value = self.values[node]
        if isinstance(value, _Structure):
            return fx.map_arg(value.content, self.real)
        return self.unwrap(value)

    def call(self, name: str, module: nn.Module, *args: Any) -> fx.Node:
        """A call of a new module under ``name``, which may be dotted, or under one like it if that is taken."""
        owner: nn.Module = self.root
        *holders, last = name.split(".")
        for holder in holders:
            if not hasattr(owner, holder):
                owner.add_module(holder, nn.Module())
            owner = getattr(owner, holder)
        last = _free_name(owner, last)
        owner.add_module(last, module)
        return self.graph.call_module(".".join([*holders, last]), args)

    def call_once(self, key: Any, name: str, build: Callable[[], nn.Module], *args: Any) -> fx.Node:
        """As :meth:`call`; a module that was built for an equal key is called again, as by the steps of an LSTM."""
        if key not in self._built:
            made = self.call(name, build(), *args)
            self._built[key] = str(made.target)
            return made
        return self.graph.call_module(self._built[key], args)

    def copy(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> fx.Node:
        """The same operation on new arguments."""
        new = self.graph.node_copy(node, value_of)
        if node.op == "call_module":
            if str(node.target) not in self._names:
                self.root.add_module(self._new_name(node), self.modules[str(node.target)])
            new.target = self._names[str(node.target)]
        return new

    def activated(self, x: fx.Node, activation: str) -> fx.Node:
        """``x`` behind the activation that a quantizer has absorbed."""
        if activation == "none":
            return x
        function = torch.nn.functional.relu if activation == "relu" else torch.nn.functional.relu6
        return self.graph.call_function(function, (x,))


def same_layer(module: QATLayer, norm: nn.Module | None) -> tuple[Any, ...]:
    """What is equal for calls of one layer: weight, bias, BatchNorm and settings such as the stride.

    Args:
        module: the layer.
        norm: the BatchNorm that it takes in.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> layer = QAT_LAYERS[nn.Linear].from_float(nn.Linear(2, 1), WeightSpec(), QATState([], [], []))
        >>> shares, equals = copy.copy(layer), copy.deepcopy(layer)
        >>> same_layer(layer, None) == same_layer(shares, None), same_layer(layer, None) == same_layer(equals, None)
        (True, False)
    """
    return type(module), module.extra_repr(), id(module.weight), id(module.bias), id(norm)


# Of the attributes of a QAT layer; the state is that of the whole model, so that copying it for each layer takes long.
_NOT_HYPERPARAMETERS = ("state", "quantizer", "_parameters", "_buffers", "_modules")


def bare_layer(module: QATLayer) -> nn.Module:
    """A float layer with the hyperparameters of a QAT layer, and no parameters.

    Example:
        >>> from lq.config.specs import WeightSpec
        >>> conv = QAT_LAYERS[nn.Conv2d].from_float(nn.Conv2d(1, 2, 3, stride=2), WeightSpec(), QATState([], [], []))
        >>> layer = bare_layer(conv)
        >>> layer, layer.weight
        (Conv2d(1, 2, kernel_size=(3, 3), stride=(2, 2), bias=False), None)
    """
    base = next(float_type for float_type, twin in QAT_LAYERS.items() if isinstance(module, twin))
    layer = nn.Module.__new__(base)
    layer.__dict__.update(copy.deepcopy({k: v for k, v in vars(module).items() if k not in _NOT_HYPERPARAMETERS}))
    layer._parameters, layer._buffers, layer._modules = {"weight": None, "bias": None}, {}, {}
    return layer


def _free_name(owner: nn.Module, wanted: str) -> str:
    """``wanted``, with a number behind it if the module has an attribute of that name."""
    return free_name(wanted, lambda name: hasattr(owner, name))


def graph_with_ranges(prepared: nn.Module, axes: Axes | None = None) -> fx.GraphModule:
    """The graph of a prepared module, with dynamic axes as in :func:`.graph.as_graph`.

    Raises:
        ValueError: if it is not prepared, has no ranges, no graph, or weights that are no numbers.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> graph_with_ranges(prepare(nn.Sequential(nn.Linear(2, 1))))
        Traceback (most recent call last):
        ValueError: No fake quantizer has seen a batch, so there are no ranges to convert with. ...
    """
    _without_range(prepared)
    check_weights(prepared)
    return as_graph(prepared, axes=axes)


def _without_range(prepared: nn.Module) -> set[str]:
    """Names of fake quantizers that never ran.

    Raises:
        ValueError: if that holds for all.
    """
    state = state_of(prepared)
    finite = torch.isfinite(state.min_val).tolist()  # not state.ready(): a slot may have run in another process only
    unseen = {name for name, has_range in zip(state.names, finite, strict=True) if not has_range}
    if not any(state.observed()):
        raise ValueError(
            "No fake quantizer has seen a batch, so there are no ranges to convert with. Before the training, write "
            "lq.set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False), which lq.prepare leaves to you; "
            "without a training, lq.calibrate(prepared, batches). An average of the model, such as an EMA, has none "
            "either if it began before the first batch of QAT: begin it behind that."
        )
    return unseen
