"""The layers of a prepared model whose weights are quantized."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lq.backends.prepare import plan_of, state_of
from lq.core.modules import QAT_LAYERS, QATLayer
from lq.instrument.classes import place_of
from lq.tracing import ops


class QuantizedLayer(NamedTuple):
    """A layer with a quantized weight, and the BatchNorm that is folded into it."""

    name: str
    module: QATLayer
    norm: _BatchNorm | None


def layers_of(prepared: nn.Module) -> list[QuantizedLayer]:
    """The layers with quantized weights, each once, in the order in which they run.

    Of a module that is instrumented in place, those whose weights its ``forward`` computes are left out; its graph
    (:func:`lq.backends.graph.as_graph`) has them too.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> [layer.name for layer in layers_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))))]
        ['0']
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    if not isinstance(prepared, fx.GraphModule):
        return _layers_in_place(prepared, modules)
    found: dict[str, QuantizedLayer] = {}
    for node in prepared.graph.nodes:
        module = ops.module_of(node, modules)
        if isinstance(module, QATLayer) and str(node.target) not in found:
            norm = prepared.get_submodule(str(cast(fx.Node, node.args[1]).target)) if len(node.args) > 1 else None
            found[str(node.target)] = QuantizedLayer(str(node.target), module, cast("_BatchNorm | None", norm))
    return list(found.values())


def _layers_in_place(prepared: nn.Module, modules: dict[str, nn.Module]) -> list[QuantizedLayer]:
    found: dict[str, QuantizedLayer] = {}
    state, sites = state_of(prepared), plan_of(prepared).sites
    for layer in () if sites is None else sites.layers:
        owner, _, weight = layer.weight.rpartition(".")
        module = modules.get(owner)
        twin = next((twin for kind, twin in QAT_LAYERS.items() if isinstance(module, kind)), None)
        if module is None or twin is None or weight != "weight" or layer.name in found:
            continue
        view: Any = twin.from_float(module, layer.spec, state)
        view.__dict__["quantizer"] = state.get_submodule(f"wq_{layer.name.replace('.', '_')}")
        view._parameters["weight_scale"] = view.quantizer.scale
        norm = None if layer.norm is None else cast(_BatchNorm, modules[layer.norm.place])
        found[layer.name] = QuantizedLayer(layer.name, view, norm)
    return list(found.values())


def is_layer(part: nn.Module) -> bool:
    """Whether a module of an instrumented one calls layers."""
    place = place_of(part)
    return place is not None and any(site is not None and site.layer for row in place.rows.values() for site in row.sites)
