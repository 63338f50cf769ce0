"""Backend ``eager``: a model that is annotated by hand, as torch.ao's eager mode wants it, is quantized as it says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from lq.backends.base import Choice, Traced
from lq.tracing import ops, stubs
from lq.tracing.errors import owner_of
from lq.tracing.fuse import Layer, find_layers
from lq.tracing.place import Placement
from lq.tracing.plan import LayerPlan

_REMEDY = (
    "Annotate it: self.quant = torch.ao.quantization.QuantStub() and self.dequant = "
    "torch.ao.quantization.DeQuantStub() in __init__, x = self.quant(x) and y = self.dequant(y) in forward. Or leave "
    "that to QConfig(backend='fx')."
)


def choose(traced: Traced) -> Choice:
    """Quantize what lies between a QuantStub and a DeQuantStub.

    Layers there, and the additions, multiplications, concatenations and matrix products of a FloatFunctional; not what
    has, or is in a module that has, ``qconfig = None``. The grids are those of the QConfig: of a module's ``qconfig``
    only whether it is ``None`` counts. Other operations compute in float.

    Raises:
        ValueError: if the module has no QuantStub.
    """
    graph_module = traced.graph_module
    entries = stubs.quant_stubs(graph_module)
    if not entries:
        kind = type(traced.root).__name__
        raise ValueError(
            f"backend='eager' quantizes what lies between a QuantStub and a DeQuantStub, and the graph of {kind} has "
            f"no QuantStub (stubs around it, outside of the target, do not count). {_REMEDY}"
        )
    inside = stubs.annotated_region(graph_module)
    annotated = stubs.functionals(graph_module)
    stubs.erase_stubs(graph_module, keep=tuple(entries))
    layers, floats = _split(traced, inside)
    joins = {
        node: name
        for node, name in annotated.items()
        if node in inside and not stubs.is_switched_off(traced.root, name)
    }
    modules = dict(graph_module.named_modules())
    fuse_add = traced.qconfig.resolved_fuse_add
    placement = Placement(graph_module.graph, modules, layers, joins, entries, fuse_add)
    return Choice(layers, floats, placement.sites(), _remarks(graph_module, inside, annotated))


def _split(traced: Traced, inside: Collection[fx.Node]) -> tuple[list[Layer], list[LayerPlan]]:
    found, floats = find_layers(traced.graph_module, traced.qconfig, traced.untraceable)
    reasons: dict[str, str] = {}
    for layer in found:
        if layer.node not in inside:
            reasons[layer.name] = "it does not lie between a QuantStub and a DeQuantStub"
        elif stubs.is_switched_off(traced.root, layer.name):
            reasons[layer.name] = "qconfig = None"
    kinds = {layer.name: type(layer.module).__name__ for layer in found if layer.name in reasons}
    floats = floats + [LayerPlan(name, kind, reason=reasons[name]) for name, kind in kinds.items()]
    return [layer for layer in found if layer.name not in reasons], floats


def _remarks(
    graph_module: fx.GraphModule, inside: Collection[fx.Node], annotated: Mapping[fx.Node, str]
) -> tuple[str, ...]:
    """Joins of tensors that nobody annotated: torch.ao would train such a model and then fail to run it."""
    plain = [n for n in graph_module.graph.nodes if n in inside and ops.joined_tensors(n) and n not in annotated]
    return tuple(
        f"`{node.name}`{_in(node)} joins quantized tensors but is not annotated, so it computes in float. To have it "
        "quantized write self.join = torch.ao.nn.quantized.FloatFunctional() and self.join."
        f"{_method(node)} in its place"
        for node in plain
    )


def _in(node: fx.Node) -> str:
    owner = owner_of(node)
    return f" in {owner}" if owner else ""


def _method(node: fx.Node) -> str:
    if node.target in ops.CAT:
        return "cat([a, b], dim)"
    return "add(a, b)" if node.target in ops.ADD else "mul(a, b)"
