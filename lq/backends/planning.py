"""What a plan says of a module, and what is said when there is none."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import fx, nn

from lq.backends.base import Choice
from lq.core.state import STATE
from lq.tracing.fuse import uncalled_layers
from lq.tracing.ops import is_cheap, is_same_grid, joined_tensors, relu_kind
from lq.tracing.plan import LayerPlan, Plan


def float_operations(graph_module: fx.GraphModule, choice: Choice) -> tuple[str, ...]:
    """Names of the graph's nodes that compute in float, before anything is inserted."""
    layers, sites = choice.layers, choice.sites
    modules = dict(graph_module.named_modules())
    joins = {site.source for site in sites if site.owned and joined_tensors(site.source)}
    absorbed = {site.node for site in sites if site.node is not site.source}
    int8 = {n for layer in layers for n in (layer.node, layer.bn)} | joins | absorbed
    quiet = {"getattr", "size", "dim", "shape", "eq", "_assert", "floordiv", "require_default", "ordered_dict"}
    return tuple(
        node.name
        for node in graph_module.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
        and (node not in int8 or is_cheap(node, modules))
        and not is_same_grid(node, modules)
        and not relu_kind(node, modules)
        and not str(node.target).startswith(STATE)
        and getattr(node.target, "__name__", str(node.target)) not in quiet
    )


def all_floats(module: nn.Module, choice: Choice) -> list[LayerPlan]:
    """Rows of the layers that stay float, of those that the graph does not call, too."""
    known = {layer.name for layer in choice.layers} | {row.name for row in choice.floats}
    return choice.floats + uncalled_layers(module, known)


def in_module_order(module: nn.Module, rows: list[LayerPlan]) -> tuple[LayerPlan, ...]:
    """One row for each layer, in the order of the module's own listing."""
    order = {name: i for i, (name, _) in enumerate(module.named_modules(remove_duplicate=False))}
    unique = {row.name: row for row in rows}
    return tuple(sorted(unique.values(), key=lambda row: order.get(row.name, len(order))))


def warn_of(plan: Plan) -> None:
    """Warn of remarks, and of layers that stay float because nothing around them can be traced."""
    for remark in plan.remarks:
        warnings.warn(f"lq: {remark}.", stacklevel=4)
    for part in plan.untraceable:
        inner = [layer.name for layer in plan.layers if layer.name.startswith(f"{part.name}.")]
        if inner:
            warnings.warn(
                f"lq: {part.name} stays float, with the {len(inner)} layers in it: {part.reason}. To have these "
                "quantized, move what has no graph into a module of its own that holds no layers.",
                stacklevel=4,
            )


def nothing_to_quantize(module: nn.Module, floats: list[LayerPlan], untraceable: Mapping[str, str]) -> str:
    """What to say of a module of which no layer is quantized."""
    kinds = "Linear, Conv1d-3d, ConvTranspose1d-3d"
    if floats:
        rows = "; ".join(f"{row.name} ({row.kind}): {row.reason}" for row in floats[:5])
        why = "".join(f" {reason}." for reason in untraceable.values())
        return (
            f"{type(module).__name__} has no layer to quantize: {rows}.{why} "
            "Widen include, shorten exclude, or choose another target."
        )
    return f"{type(module).__name__} has no quantizable layer ({kinds}). Choose a target that has one."
