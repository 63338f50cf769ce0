"""From a recorded call to the plan: what is quantized, where, and what people read of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from lq.backends import eager, pt2e
from lq.backends import fx as fx_backend
from lq.backends.base import Backend, Recorded
from lq.backends.planning import in_module_order, nothing_to_quantize
from lq.config.qconfig import QConfig
from lq.core.own_class import own_class
from lq.core.state import STATE
from lq.instrument.planning import SitePlanner
from lq.messages import some_of
from lq.tracing import ops
from lq.tracing.labels import Calls
from lq.tracing.layer_calls import is_layer
from lq.tracing.layers import RECURRENT_LAYERS, seen_of
from lq.tracing.plan import LayerPlan, Plan, ProductPlan, TensorPlan
from lq.tracing.sites import Sites
from lq.tracing.structure import Inputs
from lq.tracing.work import RECURRENT

_QUIET = frozenset(
    {
        "sub", "div", "pow", "neg", "exp", "rsqrt", "sqrt", "arange", "zeros", "ones", "full", "to", "type_as", "float",
        "expand", "masked_fill", "eq", "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "cumsum", "stack",
        "tensor", "empty", "where", "new_zeros", "new_ones", "zeros_like", "ones_like", "bitwise_and", "tril", "triu",
        "meshgrid", "bool", "long", "int", "size", "item", "clamp", "embedding", "setitem", "copy", "fill", "zero",
    }
)  # fmt: skip


BACKENDS: Mapping[str, Backend] = {"fx": fx_backend.choose, "eager": eager.choose, "pt2e": pt2e.choose}


def plan_calls(
    module: nn.Module,
    qconfig: QConfig,
    graph: fx.Graph,
    calls: Calls,
    training: Calls = (),
    unknown: Sequence[str] = (),
    example: Inputs | None = None,
    opened: Sequence[tuple[str, str, int]] = (),
) -> tuple[Sites, Plan]:
    """Decide what of a recorded call is quantized.

    Args:
        module: that was called.
        qconfig: what is wanted.
        graph: of the call.
        calls: all calls of functions, in evaluation.
        training: the same in training; empty if unknown.
        unknown: lines that read tensors of which nobody saw how they were made.
        example: inputs of the call, if there were any.
        opened: module, operation and number of steps of the calls that were recorded step by step.

    Returns:
        where to quantize, and the plan that people read.

    Raises:
        ValueError: if no layer can be quantized or a pattern matches nothing.

    Example:
        >>> from lq.tracing.symbolic import read_calls
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> sites, plan = plan_calls(net, QConfig(), *read_calls(net))
        >>> sites.names, plan.float_ops
        (('fq_input_1', 'fq_0', 'fq_1', 'fq_2'), ('1',))
    """
    recorded = Recorded.of(module, graph, calls, qconfig, example)
    choice, finder = BACKENDS[qconfig.backend](recorded), recorded.finder
    layers = choice.layers
    floats = choice.floats + finder.others({layer.name for layer in layers} | {row.name for row in choice.floats})
    planner = SitePlanner(module, calls, layers, choice.sites, qconfig, training, opened)
    named = {name: m for name, m in module.named_modules() if name}
    qconfig.check_patterns(
        dict.fromkeys(planner.labels(), nn.Identity()) | named | {layer.name: layer.module for layer in layers}
    )
    if not layers:
        raise ValueError(nothing_to_quantize(module, floats))
    sites, rows, tensors = planner.sites()
    _check_scales(sites, tensors)
    work = _Work(graph, planner, finder.names, choice.products)
    plan = Plan(
        own_class(module).__name__,
        qconfig.title,
        tuple(work.filled(row) for row in in_module_order(module, rows + floats)),
        tensors,
        _float_operations(graph, planner, {node for node, reason in choice.products.items() if not reason}),
        notes=(*choice.notes, *_notes(unknown), *_without_effect(planner)),
        sites=sites,
        products=work.products(),
        modules=architecture(module),
        kept=planner.kept(),
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


def _check_scales(sites: Sites, tensors: tuple[TensorPlan, ...]) -> None:
    learned = {name for name, spec in zip(sites.names, sites.specs, strict=True) if spec.learned_scale}
    shared = {name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1}
    together = [tensor.after for tensor in tensors if tensor.name in learned & shared]
    if together:
        raise ValueError(
            f"activation.learned_scale=True, but {some_of(together)} have one grid together, as the quantizer "
            "wants it, and a learned scale belongs to one tensor. Leave learned_scale out."
        )


class _Work:
    """Multiply-accumulates of layers and of products of matrices, and the lines that compute them."""

    def __init__(
        self, graph: fx.Graph, planner: SitePlanner, names: Mapping[fx.Node, str], products: Mapping[fx.Node, str]
    ) -> None:
        self.layers: dict[str, tuple[int, str]] = {}
        self.others: list[ProductPlan] = []
        for node in graph.nodes:
            if ops.SEEN not in node.meta:
                continue
            seen = seen_of(node)
            recurrent = seen.operation in RECURRENT and isinstance(planner.modules[seen.stack[-1]], RECURRENT_LAYERS)
            if is_layer(node) or recurrent:
                name = seen.stack[-1] if recurrent else names[node]
                before = self.layers.get(name, (0, seen.line))[0]
                self.layers[name] = (before + seen.work, seen.line)
            elif seen.work and not node.meta.get("constant"):
                reason = products.get(node, _why_float(node))
                self.others.append(ProductPlan(planner.label(node), seen.operation, seen.work, seen.line, reason))

    def filled(self, row: LayerPlan) -> LayerPlan:
        work, line = self.layers.get(row.name, (0, ""))
        return replace(row, work=work, line=line)

    def products(self) -> tuple[ProductPlan, ...]:
        return tuple(self.others)


def _why_float(node: fx.Node) -> str:
    if any(n.meta.get("constant") for n in node.all_input_nodes):
        return f"{ops.recorded(node)}() with a weight is no layer with an int8 kernel"
    return "a product of two activations computes in float"


def _notes(unknown: Sequence[str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    lines = ", ".join(dict.fromkeys(unknown))
    what = "a tensor comes" if len(unknown) == 1 else f"{len(unknown)} tensors come"
    return (
        f"{what} from code that PyTorch does not show (numpy, TorchScript, torch.func, a constant): {lines}; "
        "what is computed there stays as it is",
    )


def _without_effect(planner: SitePlanner) -> tuple[str, ...]:
    found = planner.without_effect()
    if not found:
        return ()
    return (f"overrides that change nothing, because nothing is quantized there: {', '.join(found)}",)


def _float_operations(graph: fx.Graph, planner: SitePlanner, products: set[fx.Node]) -> tuple[str, ...]:
    roundings = planner.roundings
    joins = {r.source for r in roundings if r.owned and ops.joined_tensors(r.source)}
    absorbed = {r.node for r in roundings if r.node is not r.source}
    int8 = {n for layer in planner.layers for n in (layer.node, layer.bn)} | joins | absorbed | products
    found = []
    for node in graph.nodes:
        operation = ops.recorded(node)
        if not operation or node.meta.get("constant") or node in int8 or operation in _QUIET:
            continue
        if not ops.is_same_grid(node) and not ops.relu_kind(node):
            place = seen_of(node).stack[-1]
            is_step = isinstance(planner.modules[place], RECURRENT_LAYERS)
            found.append(f"{place}.{operation}".lstrip(".") if is_step else planner.label(node))
    return tuple(dict.fromkeys(found))
