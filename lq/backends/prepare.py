"""``prepare``: a float module becomes a fake-quantized graph that shares its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QATLayer, qat_twin
from lq.core.state import QATState
from lq.qconfig import ActivationSpec, QConfig, as_qconfig
from lq.tracing.fuse import Layer, find_layers
from lq.tracing.inplace import make_out_of_place
from lq.tracing.ops import is_cheap, is_same_grid, relu_kind
from lq.tracing.place import Placement, Site
from lq.tracing.plan import LayerPlan, Plan, TensorPlan
from lq.tracing.trace import STATE, copy_modes, passed_parameters, trace

SELF_CHECK_TOLERANCE = 1e-5


def prepare(
    module: nn.Module,
    qconfig: QConfig | str = "portable",
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Insert fake quantizers into a copy of ``module``'s graph; parameters and buffers are shared with ``module``.

    The state dict of the result holds every key of the float module plus those of ``qat_state``, so a float checkpoint
    loads with only the latter missing. Fake quantization starts switched off: see :func:`set_phase`.

    Args:
        module: any module that :func:`lq.tracing.trace.trace` can trace; a prepared module is returned as it is.
        qconfig: preset name or :class:`~lq.qconfig.QConfig`.
        example_args: positional inputs of one call; with them the result is checked against ``module``.
        example_kwargs: keyword inputs of that call.

    Returns:
        the prepared GraphModule; :func:`plan_of` gives its plan.

    Raises:
        ValueError: if no layer can be quantized, a pattern matches nothing or the graph computes something else.
        UntraceableError: if the module cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> prepared = prepare(net, example_args=(torch.randn(2, 1, 4, 4),))
        >>> print(plan_of(prepared).summary())
        Sequential, qconfig portable: 2 of 2 layers quantized, 3 fake quantizers, other operations in float: 0
    """
    if is_prepared(module):
        assert isinstance(module, fx.GraphModule)
        return module
    qconfig = as_qconfig(qconfig)
    qconfig.check_patterns({name: m for name, m in module.named_modules() if name})
    kwargs = dict(example_kwargs or {})
    passed = passed_parameters(module, example_args, kwargs) if example_args is not None else frozenset()
    graph_module = trace(module, passed)
    layers, floats = find_layers(graph_module, qconfig)
    if not layers:
        raise ValueError(_nothing_to_quantize(module, floats))
    sites = Placement(graph_module.graph, dict(graph_module.named_modules()), layers).sites()
    float_ops = _float_operations(graph_module, layers, sites)
    by_output = {layer.last: layer for layer in layers}
    specs = [_activation_spec(site, by_output, qconfig) for site in sites]
    names = [_site_name(site, by_output) for site in sites]
    state = QATState(names, specs, [site.activation for site in sites])
    _install_state(graph_module, state)
    _insert_fake_quantizers(graph_module, state, sites, names)
    make_out_of_place(graph_module)
    rows = [_swap_layer(graph_module, layer, state, qconfig) for layer in layers]
    _finish(graph_module)
    tensors = tuple(
        TensorPlan(name, site.source.name, str(spec), site.activation)
        for name, site, spec in zip(names, sites, specs, strict=True)
    )
    ordered = _in_module_order(module, rows + floats)
    state.plan = Plan(type(module).__name__, qconfig.preset, ordered, tensors, float_ops)
    state.qconfig = qconfig
    copy_modes(module, graph_module)
    if example_args is not None:
        self_check(module, graph_module, example_args, kwargs)
    return graph_module


def is_prepared(module: nn.Module) -> bool:
    """Whether ``module`` comes from :func:`prepare`."""
    return isinstance(getattr(module, STATE, None), QATState)


def state_of(prepared: nn.Module) -> QATState:
    """The quantization state of a prepared module.

    Raises:
        ValueError: if it is not prepared.
    """
    state = getattr(prepared, STATE, None)
    if not isinstance(state, QATState):
        raise ValueError(f"{type(prepared).__name__} is not prepared for QAT; call lq.prepare(module) first.")
    return state


def plan_of(prepared: nn.Module) -> Plan:
    """The plan of a prepared module."""
    plan = state_of(prepared).plan
    assert isinstance(plan, Plan)
    return plan


def qconfig_of(prepared: nn.Module) -> QConfig:
    """The qconfig that a module was prepared with."""
    qconfig = state_of(prepared).qconfig
    assert isinstance(qconfig, QConfig)
    return qconfig


def set_phase(prepared: nn.Module, *, fake_quant: bool, observer: bool, freeze_bn: bool) -> None:
    """Switch fake quantization, range observers and BatchNorm folding of a prepared module on or off.

    Example:
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
        >>> prepared.qat_state.fake_quant
        True
    """
    state = state_of(prepared)
    state.fake_quant, state.observer, state.freeze_bn = fake_quant, observer, freeze_bn


@torch.no_grad()
def self_check(
    module: nn.Module, prepared: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> None:
    """Compare the prepared module with the float one, in evaluation and with fake quantization off.

    Raises:
        ValueError: if the outputs differ in type or by more than 1e-5 of the largest value.
    """
    state = state_of(prepared)
    flags = (state.fake_quant, state.observer)
    modes = {m: m.training for root in (module, prepared) for m in root.modules()}
    state.fake_quant = state.observer = False
    try:
        expected = module.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs or {})))
        got = prepared.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs or {})))
    finally:
        state.fake_quant, state.observer = flags
        for m, training in modes.items():
            m.training = training
    _compare_outputs(expected, got, type(module).__name__)


def _compare_outputs(expected: Any, got: Any, name: str) -> None:
    remedy = (
        "The traced graph computes something else. Exclude the module at fault from the target or report this model."
    )
    if type(expected) is not type(got):
        raise ValueError(
            f"{name} returns {type(expected).__name__} but its graph returns {type(got).__name__}. {remedy}"
        )
    (leaves, structure), (got_leaves, got_structure) = pytree.tree_flatten(expected), pytree.tree_flatten(got)
    if structure != got_structure:
        raise ValueError(f"{name} and its graph return different structures: {structure}, {got_structure}. {remedy}")
    for a, b in zip(leaves, got_leaves, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.is_floating_point():
            continue
        if a.shape != b.shape:
            raise ValueError(f"{name} returns shape {tuple(a.shape)} but its graph {tuple(b.shape)}. {remedy}")
        limit = SELF_CHECK_TOLERANCE * max(1.0, float(a.abs().max())) if a.numel() else 0.0
        error = float((a.float() - b.float()).abs().max()) if a.numel() else 0.0
        if not error <= limit and bool(torch.isfinite(a).all()):
            raise ValueError(
                f"{name}: float and prepared outputs differ by {error:.3g} (allowed {limit:.3g}). {remedy}"
            )


# ---- the surgery ----------------------------------------------------------------------------------------------


def _install_state(graph_module: fx.GraphModule, state: QATState) -> None:
    for name, helper in graph_module.get_submodule(STATE).named_children() if hasattr(graph_module, STATE) else ():
        state.add_module(name, helper)
    graph_module.add_module(STATE, state)


def _insert_fake_quantizers(graph_module: fx.GraphModule, state: QATState, sites: list[Site], names: list[str]) -> None:
    graph = graph_module.graph
    for slot, (site, name) in enumerate(zip(sites, names, strict=True)):
        state.add_module(name, FakeQuantize(state, slot, site.inplace, site.owned))
        readers = site.users
        with graph.inserting_after(site.node):
            quantized = graph.call_module(f"{STATE}.{name}", (site.source,))
        for user in readers:
            user.replace_input_with(site.node, quantized)
        if site.node is not site.source:
            site.node.replace_all_uses_with(quantized)
            graph.erase_node(site.node)


def _swap_layer(graph_module: fx.GraphModule, layer: Layer, state: QATState, qconfig: QConfig) -> LayerPlan:
    twin = qat_twin(layer.module)
    assert twin is not None
    spec = qconfig.weight_spec(layer.name, layer.module)
    if not isinstance(graph_module.get_submodule(layer.name), QATLayer):
        graph_module.set_submodule(layer.name, twin.from_float(layer.module, spec, state))
    fused: tuple[str, ...] = ()
    if layer.bn is not None:
        fused = (type(graph_module.get_submodule(str(layer.bn.target))).__name__,)
        with graph_module.graph.inserting_before(layer.node):
            bn = graph_module.graph.get_attr(str(layer.bn.target))
        layer.node.args = (layer.node.args[0], bn)
        layer.bn.replace_all_uses_with(layer.node)
        graph_module.graph.erase_node(layer.bn)
    quantizer = next(iter(layer.node.users))
    absorbed = getattr(graph_module.get_submodule(str(quantizer.target)), "activation", "none")
    if absorbed != "none":
        fused = (*fused, {"relu": "ReLU", "relu6": "ReLU6"}[absorbed])
    quantized = graph_module.get_submodule(layer.name)
    assert isinstance(quantized, QATLayer)
    return LayerPlan(layer.name, type(layer.module).__name__, fused, str(quantized.weight_spec))


def _finish(graph_module: fx.GraphModule) -> None:
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        observed = graph_module.graph.call_module(STATE, (output.args[0],))
    output.args = (observed,)
    graph_module.graph.lint()
    graph_module.recompile()


def _activation_spec(site: Site, layers: Mapping[fx.Node, Layer], qconfig: QConfig) -> ActivationSpec:
    layer = layers.get(site.source)
    if layer is not None:
        return qconfig.activation_spec(layer.name, layer.module)
    return qconfig.activation_spec(site.source.name, None)


def _site_name(site: Site, layers: Mapping[fx.Node, Layer]) -> str:
    # A layer that is called twice has two quantizers; node names tell them apart. The prefix keeps them off the
    # attributes of a module.
    layer = layers.get(site.source)
    return f"fq_{layer.node.name if layer is not None else site.source.name}"


def _float_operations(graph_module: fx.GraphModule, layers: list[Layer], sites: list[Site]) -> tuple[str, ...]:
    modules = dict(graph_module.named_modules())
    int8 = {n for layer in layers for n in (layer.node, layer.bn)} | {n for s in sites for n in (s.node, s.source)}
    quiet = {"getattr", "size", "dim", "shape", "eq", "_assert", "floordiv", "require_default"}
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


def _in_module_order(module: nn.Module, rows: list[LayerPlan]) -> tuple[LayerPlan, ...]:
    order = {name: i for i, (name, _) in enumerate(module.named_modules(remove_duplicate=False))}
    unique = {row.name: row for row in rows}
    return tuple(sorted(unique.values(), key=lambda row: order.get(row.name, len(order))))


def _nothing_to_quantize(module: nn.Module, floats: list[LayerPlan]) -> str:
    kinds = "Linear, Conv1d-3d, ConvTranspose1d-3d"
    if floats:
        rows = "; ".join(f"{row.name} ({row.kind}): {row.reason}" for row in floats[:5])
        return (
            f"{type(module).__name__} has no layer to quantize: {rows}. "
            "Widen include, shorten exclude, or choose another target."
        )
    return f"{type(module).__name__} has no quantizable layer ({kinds}). Choose a target that has one."
