"""From a recorded call to the plan: what is quantized, where, and what people read of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx, nn

from lq.backends.planning import in_module_order, nothing_to_quantize
from lq.core.own_class import own_class
from lq.core.state import STATE
from lq.instrument.planning import Calls, SitePlanner
from lq.qconfig import QConfig
from lq.tracing import ops
from lq.tracing.layer_calls import LAYERS
from lq.tracing.layers import LayerFinder, seen_of
from lq.tracing.place import Placement
from lq.tracing.plan import LayerPlan, Plan, ProductPlan
from lq.tracing.sites import Sites

_QUIET = frozenset(
    {
        "sub", "div", "pow", "neg", "exp", "rsqrt", "sqrt", "arange", "zeros", "ones", "full", "to", "type_as", "float",
        "expand", "masked_fill", "eq", "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "cumsum", "stack",
        "tensor", "empty", "where", "new_zeros", "new_ones", "zeros_like", "ones_like", "bitwise_and", "tril", "triu",
        "meshgrid", "bool", "long", "int", "size", "item", "clamp", "embedding", "setitem", "copy", "fill", "zero",
    }
)  # fmt: skip


def plan_calls(
    module: nn.Module,
    qconfig: QConfig,
    graph: fx.Graph,
    calls: Calls,
    training: Calls,
    unknown: list[str],
) -> tuple[Sites, Plan]:
    """Decide what of a recorded call is quantized.

    Args:
        module: that was called.
        qconfig: what is wanted.
        graph: of the call.
        calls: all calls of functions, in evaluation.
        training: the same in training; empty if unknown.
        unknown: lines that read tensors of which nobody saw how they were made.

    Returns:
        where to quantize, and the plan that people read.

    Raises:
        ValueError: if no layer can be quantized or a pattern matches nothing.
    """
    finder = LayerFinder(graph, module, qconfig)
    layers, floats = finder.find()
    floats += finder.others({layer.name for layer in layers} | {row.name for row in floats})
    placement = Placement(graph, {}, layers, fuse_add=qconfig.resolved_fuse_add)
    planner = SitePlanner(module, calls, layers, placement.sites(), qconfig, training)
    named = {name: m for name, m in module.named_modules() if name}
    qconfig.check_patterns(
        dict.fromkeys(planner.labels(), nn.Identity()) | named | {layer.name: layer.module for layer in layers}
    )
    if not layers:
        raise ValueError(nothing_to_quantize(module, floats, {}))
    sites, rows, tensors = planner.sites()
    work = _Work(graph, planner, finder.names)
    plan = Plan(
        own_class(module).__name__,
        qconfig.title,
        tuple(work.filled(row) for row in in_module_order(module, rows + floats)),
        tensors,
        _float_operations(graph, planner),
        remarks=_remarks(unknown),
        sites=sites,
        products=work.products(),
        modules=architecture(module),
    )
    return sites, plan


def architecture(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Dotted name and class of every part of a module.

    Example:
        >>> architecture(nn.Sequential(nn.ReLU()))
        (('', 'Sequential'), ('0', 'ReLU'))
    """
    parts = module.named_modules(remove_duplicate=False)
    return tuple((name, own_class(part).__name__) for name, part in parts if not f"{name}.".startswith(f"{STATE}."))


class _Work:
    """Multiply-accumulates of layers and of products of matrices, and the lines that compute them."""

    def __init__(self, graph: fx.Graph, planner: SitePlanner, names: Mapping[fx.Node, str]) -> None:
        self.layers: dict[str, tuple[int, str]] = {}
        self.others: list[ProductPlan] = []
        for node in graph.nodes:
            if ops.SEEN not in node.meta:
                continue
            seen = seen_of(node)
            if ops.recorded(node) in LAYERS:
                name = names[node]
                before = self.layers.get(name, (0, seen.line))[0]
                self.layers[name] = (before + seen.work, seen.line)
            elif seen.work and not node.meta.get("constant"):
                reason = "a product of two activations computes in float"
                self.others.append(ProductPlan(planner.label(node), seen.operation, seen.work, seen.line, reason))

    def filled(self, row: LayerPlan) -> LayerPlan:
        work, line = self.layers.get(row.name, (0, ""))
        return replace(row, work=work, line=line)

    def products(self) -> tuple[ProductPlan, ...]:
        return tuple(self.others)


def _remarks(unknown: list[str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    lines = ", ".join(dict.fromkeys(unknown))
    what = "a tensor comes" if len(unknown) == 1 else f"{len(unknown)} tensors come"
    return (
        f"{what} from code that PyTorch does not show (numpy, TorchScript, a constant): {lines}; "
        "what is computed there stays as it is",
    )


def _float_operations(graph: fx.Graph, planner: SitePlanner) -> tuple[str, ...]:
    roundings = planner.roundings
    joins = {r.source for r in roundings if r.owned and ops.joined_tensors(r.source)}
    absorbed = {r.node for r in roundings if r.node is not r.source}
    int8 = {n for layer in planner.layers for n in (layer.node, layer.bn)} | joins | absorbed
    found = []
    for node in graph.nodes:
        operation = ops.recorded(node)
        if not operation or node.meta.get("constant") or node in int8 or operation in _QUIET:
            continue
        if not ops.is_same_grid(node, {}) and not ops.relu_kind(node, {}):
            found.append(planner.label(node))
    return tuple(found)
