"""Fake quantizers and QAT layers are put into a traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QATLayer, qat_twin
from lq.core.state import STATE, QATState
from lq.qconfig import QConfig
from lq.specs import ActivationSpec
from lq.tracing.ends import Ends
from lq.tracing.fuse import Layer
from lq.tracing.inplace import make_out_of_place
from lq.tracing.place import Rounding
from lq.tracing.plan import LayerPlan, TensorPlan


def insert_quantization(
    graph_module: fx.GraphModule, layers: list[Layer], sites: list[Rounding], qconfig: QConfig
) -> tuple[QATState, list[LayerPlan], tuple[TensorPlan, ...]]:
    """Put a fake quantizer at every site of a traced graph, and the QAT twin in the place of every layer.

    Args:
        graph_module: from :func:`lq.tracing.trace.trace`; it is changed.
        layers: what is quantized.
        sites: where values are rounded.
        qconfig: the grids.

    Returns:
        the state that the quantizers share, and the plan's rows of layers and of tensors.
    """
    by_output = {layer.last: layer for layer in layers}
    names = _site_names(sites, by_output)
    slots = _slots(sites)
    firsts = [slots.index(slot) for slot in range(max(slots, default=-1) + 1)]
    ends = Ends(layers, sites) if qconfig.keep == "ends" else None
    specs = [_activation_spec(sites[i], by_output, qconfig, ends) for i in firsts]
    _check_scales(names, slots, specs)
    state = QATState([names[i] for i in firsts], specs, [sites[i].activation for i in firsts])
    _install_state(graph_module, state)
    _insert_fake_quantizers(graph_module, state, sites, names, slots)
    make_out_of_place(graph_module)
    rows = [_swap_layer(graph_module, layer, state, qconfig, ends) for layer in layers]
    _finish(graph_module)
    tensors = tuple(
        TensorPlan(name, site.source.name, str(specs[slot]), site.activation)
        for name, site, slot in zip(names, sites, slots, strict=True)
    )
    return state, rows, tensors


def _check_scales(names: list[str], slots: list[int], specs: list[ActivationSpec]) -> None:
    both = zip(names, slots, strict=True)
    together = [name for name, slot in both if slots.count(slot) > 1 and specs[slot].learned_scale]
    if together:
        raise ValueError(
            f"activation.learned_scale=True, but {', '.join(together[:5])} have one grid together, as the quantizer "
            "wants it, and a learned scale belongs to one tensor. Leave learned_scale out."
        )


def _slots(sites: list[Rounding]) -> list[int]:
    """The slot of each site, in execution order; those of one group share theirs."""
    known: dict[object, int] = {}
    return [known.setdefault(i if s.group is None else ("group", s.group), len(known)) for i, s in enumerate(sites)]


def _install_state(graph_module: fx.GraphModule, state: QATState) -> None:
    for name, helper in graph_module.get_submodule(STATE).named_children() if hasattr(graph_module, STATE) else ():
        state.add_module(name, helper)
    graph_module.add_module(STATE, state)
    refuse_other_plans(graph_module)


def refuse_other_plans(module: nn.Module) -> None:
    """Let a prepared module refuse checkpoints of another plan before anything of them is loaded."""
    module.register_load_state_dict_pre_hook(_refuse_other_plans)  # type: ignore[no-untyped-call]


def _refuse_other_plans(graph_module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before anything is loaded: the layers come before the state, and fit many a checkpoint of another plan."""
    state = getattr(graph_module, STATE)
    assert isinstance(state, QATState)
    state.check_checkpoint(state_dict, f"{prefix}{STATE}.")


def _insert_fake_quantizers(
    graph_module: fx.GraphModule, state: QATState, sites: list[Rounding], names: list[str], slots: list[int]
) -> None:
    graph = graph_module.graph
    for site, name, slot in zip(sites, names, slots, strict=True):
        state.add_module(name, FakeQuantize(state, slot, site.inplace, site.owned))
        readers = site.users
        with graph.inserting_after(site.node):
            quantized = graph.call_module(f"{STATE}.{name}", (site.source,))
        for user in readers:
            user.replace_input_with(site.node, quantized)
        if site.node is not site.source:
            site.node.replace_all_uses_with(quantized)
            graph.erase_node(site.node)


def _swap_layer(
    graph_module: fx.GraphModule, layer: Layer, state: QATState, qconfig: QConfig, ends: Ends | None
) -> LayerPlan:
    twin = qat_twin(layer.module)
    assert twin is not None
    kept = ends is not None and layer.name in ends.layers
    spec = qconfig.weight_spec(layer.name, layer.module, layer.spec, kept)
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
    reader = next(iter(layer.node.users))
    quantizer = graph_module.get_submodule(str(reader.target)) if reader.op == "call_module" else None
    absorbed = quantizer.activation if isinstance(quantizer, FakeQuantize) else "none"
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


def _activation_spec(
    site: Rounding, layers: Mapping[fx.Node, Layer], qconfig: QConfig, ends: Ends | None
) -> ActivationSpec:
    layer, kept = layers.get(site.source), ends is not None and ends.has(site)
    if layer is not None:
        return qconfig.activation_spec(layer.name, layer.module, site.spec, kept)
    return qconfig.activation_spec(site.source.name, None, site.spec, kept)


def _site_names(sites: list[Rounding], layers: Mapping[fx.Node, Layer]) -> list[str]:
    # A layer that is called twice has two quantizers; node names tell them apart. The prefix keeps them off the
    # attributes of a module.
    names: dict[str, None] = {}
    for site in sites:
        layer = layers.get(site.source)
        name = f"fq_{layer.node.name if layer is not None else site.source.name}"
        while name in names:  # two stubs may read one tensor, and a vendor may want two grids of one
            name += "_again"
        names[name] = None
    return list(names)
