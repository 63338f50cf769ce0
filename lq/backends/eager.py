"""Backend ``eager``: a model that is annotated by hand, as torch.ao's eager mode wants it, is quantized as it says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from lq.backends.base import Choice, Recorded
from lq.core.own_class import own_class
from lq.tracing import ops, stubs
from lq.tracing.layers import Layer, seen_of
from lq.tracing.place import Placement
from lq.tracing.plan import LayerPlan

_REMEDY = (
    "Annotate it: self.quant = torch.ao.quantization.QuantStub() and self.dequant = "
    "torch.ao.quantization.DeQuantStub() in __init__, x = self.quant(x) and y = self.dequant(y) in forward. Or leave "
    "that to QConfig(backend='fx')."
)


def choose(recorded: Recorded) -> Choice:
    """Quantize what lies between a QuantStub and a DeQuantStub.

    Layers there, and the additions, multiplications, concatenations and matrix products of a FloatFunctional; not what
    has, or is in a module that has, ``qconfig = None``. The grids are those of the QConfig: of a module's ``qconfig``
    only whether it is ``None`` counts. Other operations compute in float.

    Raises:
        ValueError: if the module calls no QuantStub.

    Example:
        >>> import torch
        >>> from torch.ao.quantization import DeQuantStub, QuantStub
        >>> from lq.backends.base import recorded_call
        >>> from lq.config.qconfig import QConfig
        >>> net = torch.nn.Sequential(QuantStub(), torch.nn.Linear(4, 2), DeQuantStub(), torch.nn.Linear(2, 2))
        >>> choice = choose(recorded_call(net, (torch.ones(1, 4),), qconfig=QConfig(backend="eager")))
        >>> [layer.name for layer in choice.layers], [(row.name, row.reason) for row in choice.floats]
        (['1'], [('3', 'it does not lie between a QuantStub and a DeQuantStub')])
    """
    graph = recorded.graph
    entries = stubs.quant_stubs(graph)
    if not entries:
        raise ValueError(
            "backend='eager' quantizes what lies between a QuantStub and a DeQuantStub, and "
            f"{own_class(recorded.root).__name__} calls no QuantStub (stubs around it, outside of the target, do not "
            f"count). {_REMEDY}"
        )
    inside, annotated = stubs.annotated_region(graph), stubs.functionals(graph)
    layers, floats = _split(recorded, inside)
    modules = recorded.finder.modules
    joins = [n for n, name in annotated.items() if n in inside and not stubs.is_switched_off(modules, name)]
    placement = Placement(graph, layers, joins, entries, recorded.qconfig.resolved_fuse_add)
    return Choice(layers, floats, placement.sites(), _notes(graph, inside, annotated))


def _split(recorded: Recorded, inside: Collection[fx.Node]) -> tuple[list[Layer], list[LayerPlan]]:
    found, floats = recorded.finder.find()
    reasons: dict[str, str] = {}
    for layer in found:
        if layer.node not in inside:
            reasons[layer.name] = "it does not lie between a QuantStub and a DeQuantStub"
        elif stubs.is_switched_off(recorded.finder.modules, layer.name):
            reasons[layer.name] = "qconfig = None"
    kept = [layer for layer in found if layer.name not in reasons]
    return kept, floats + [layer.stays_float(reasons[layer.name]) for layer in found if layer.name in reasons]


def _notes(graph: fx.Graph, inside: Collection[fx.Node], annotated: Mapping[fx.Node, str]) -> tuple[str, ...]:
    """Joins of tensors that nobody annotated: torch.ao would train such a model and then fail to run it."""
    plain = [n for n in graph.nodes if n in inside and ops.joined_tensors(n) and n not in annotated]
    return tuple(
        f"{_where(node)} joins quantized tensors but is not annotated, so it computes in float. To have it "
        "quantized write self.join = torch.ao.nn.quantized.FloatFunctional() and self.join."
        f"{_method(node)} in its place"
        for node in plain
    )


def _where(node: fx.Node) -> str:
    seen = seen_of(node)
    line = f" ({seen.line})" if seen.line else ""
    return f"`{seen.operation}` in {seen.stack[-1] or 'the target'}{line}"


def _method(node: fx.Node) -> str:
    name = ops.operation_of(node)
    return "cat([a, b], dim)" if name == "cat" else f"{name}(a, b)"
