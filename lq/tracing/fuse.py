"""Which layers are quantized, and which BatchNorm each of them takes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from lq.core.modules import QAT_LAYERS, has_running_statistics, qat_twin
from lq.qconfig import QConfig
from lq.specs import WeightSpec
from lq.tracing.ops import module_of
from lq.tracing.plan import LayerPlan

_BN_DIMENSIONS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Conv1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.Conv3d: (nn.BatchNorm3d, nn.SyncBatchNorm),
    nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.ConvTranspose1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.ConvTranspose2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.ConvTranspose3d: (nn.BatchNorm3d, nn.SyncBatchNorm),
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layer:
    """A layer to quantize.

    Args:
        node: its call.
        name: that it has in the plan.
        module: whose layer it is.
        bn: the BatchNorm call behind it.
        spec: the grid that a backend wants.
        input: what it reads; ``None`` is the first argument.
        kind: of a recorded call, the operation.
    """

    node: fx.Node
    name: str
    module: nn.Module
    bn: fx.Node | None = None
    spec: WeightSpec | None = None
    input: fx.Node | None = None
    kind: str = ""

    @property
    def last(self) -> fx.Node:
        """The node whose value is the layer's output."""
        return self.bn or self.node

    @property
    def source(self) -> fx.Node | None:
        """The node that it reads."""
        found = self.input or (self.node.args[0] if self.node.args else None)
        return found if isinstance(found, fx.Node) else None

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution that is not transposed."""
        if self.kind:
            return self.kind in ("conv1d", "conv2d", "conv3d")
        return isinstance(self.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def find_layers(
    graph_module: fx.GraphModule, qconfig: QConfig, untraceable: Collection[str] = ()
) -> tuple[list[Layer], list[LayerPlan]]:
    """The layers to quantize with their BatchNorm, and the plan rows of those that stay float.

    Args:
        graph_module: the traced module.
        qconfig: which layers are wanted.
        untraceable: dotted names of submodules that run as they are, with all layers in them.

    Returns:
        both, in execution order.
    """
    modules = dict(graph_module.named_modules())
    calls = Counter(str(n.target) for n in graph_module.graph.nodes if n.op == "call_module")
    layers: list[Layer] = []
    floats: list[LayerPlan] = []
    for node in graph_module.graph.nodes:
        module = module_of(node, modules)
        if module is None:
            continue
        name = str(node.target)
        if name in untraceable:
            floats += _layers_inside(name, module)
            continue
        outer = next((part for part in untraceable if name.startswith(f"{part}.")), None)
        reason = _inside(outer) if outer else _why_float(name, module, qconfig)
        if reason is None and (len(node.args) != 1 or node.kwargs):
            reason = "it is called with more than its input"
        if reason is None:
            layers.append(Layer(node, name, module, _batch_norm_behind(node, module, modules, calls)))
        elif reason and not any(row.name == name for row in floats):
            floats.append(LayerPlan(name, type(module).__name__, reason=reason))
    return layers, floats


def uncalled_layers(root: nn.Module, known: Collection[str]) -> list[LayerPlan]:
    """Plan rows of layers that the graph does not call, such as those whose weight another module's code reads.

    Args:
        root: the module that was traced.
        known: names of the modules that have a row; what is inside them needs none.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> [row.name for row in uncalled_layers(net, {"0"})]
        ['1']
    """
    reason = "it is not called; whatever reads its weight computes in float"
    return [
        LayerPlan(name, type(module).__name__, reason=reason)
        for name, module in root.named_modules()
        if isinstance(module, tuple(QAT_LAYERS)) and not any(f"{name}.".startswith(f"{k}.") for k in known)
    ]


def _layers_inside(name: str, module: nn.Module) -> list[LayerPlan]:
    inner = [(path, m) for path, m in module.named_modules() if isinstance(m, tuple(QAT_LAYERS))]
    return [LayerPlan(f"{name}.{path}", type(m).__name__, reason=_inside(name)) for path, m in inner]


def _inside(part: str) -> str:
    return f"inside {part}, which cannot be traced"


def _why_float(name: str, module: nn.Module, qconfig: QConfig) -> str | None:
    """``None`` if the layer is quantized; "" if it is not a layer with a weight; else the reason."""
    if isinstance(module, nn.MultiheadAttention):
        return "attention computes in float"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent layers have no quantized training; quantize them dynamically"
    if not isinstance(module, tuple(QAT_LAYERS)):
        inside = any(isinstance(m, tuple(QAT_LAYERS)) for m in module.modules())
        return f"{type(module).__name__} is not traced; the layers inside it compute in float" if inside else ""
    if is_parametrized(module):
        return "its weight is parametrized; remove the parametrization to quantize it"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed by a hook (weight_norm, spectral_norm); remove that to quantize it"
    if qat_twin(module) is None:
        return f"{type(module).__name__} has a forward of its own"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={module.padding_mode!r} has no int8 kernel"
    if getattr(module, "padding", 0) == "same" and _pads_one_side_more(module):
        return "padding='same' with this even kernel pads one side more; there is no int8 kernel for that"
    return qconfig.excludes(name, module)


def _pads_one_side_more(conv: nn.Module) -> bool:
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))


def _batch_norm_behind(
    node: fx.Node, module: nn.Module, modules: dict[str, nn.Module], calls: Counter[str]
) -> fx.Node | None:
    if len(node.users) != 1 or calls[str(node.target)] != 1:
        return None
    user = next(iter(node.users))
    bn = module_of(user, modules)
    allowed = next(kinds for base, kinds in _BN_DIMENSIONS.items() if isinstance(module, base))
    if isinstance(module, _TRANSPOSED) and module.groups > 1:
        return None  # its weight has no axis of all output channels
    if not isinstance(bn, allowed) or calls[str(user.target)] != 1 or not has_running_statistics(bn):
        return None
    plain_forward = type(bn).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return user if plain_forward else None
