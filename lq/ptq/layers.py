"""The layers of a prepared model whose weights are quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of, state_of
from lq.compat.torch_private import BatchNorm
from lq.core.modules import QAT_LAYERS, QATLayer
from lq.instrument.classes import place_of
from lq.instrument.sites import Site
from lq.tracing import ops


class QuantizedLayer(NamedTuple):
    """A layer with a quantized weight, and the BatchNorm that is folded into it.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> (layer,) = layers_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))))
        >>> layer.name, tuple(layer.module.weight.shape), type(layer.norm).__name__
        ('0', (2, 4), 'BatchNorm1d')
    """

    name: str
    module: QATLayer
    norm: BatchNorm | None


def layers_of(prepared: nn.Module) -> list[QuantizedLayer]:
    """The layers with quantized weights, each once, in the order in which they run.

    Of a module that is instrumented in place, those whose weights its ``forward`` computes are left out; its graph
    (:func:`lq.conversion.graph.as_graph`) has them too.

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
            found[str(node.target)] = QuantizedLayer(str(node.target), module, cast("BatchNorm | None", norm))
    return list(found.values())


def _layers_in_place(prepared: nn.Module, modules: dict[str, nn.Module]) -> list[QuantizedLayer]:
    found: dict[str, QuantizedLayer] = {}
    state, sites = state_of(prepared), plan_of(prepared).sites
    for layer in () if sites is None else sites.layers:
        module = modules.get(layer.name)  # the weight may be another's too
        twin = next((twin for kind, twin in QAT_LAYERS.items() if isinstance(module, kind)), None)
        if module is None or twin is None or not layer.weight.endswith("weight") or layer.name in found:
            continue
        view: Any = twin.from_float(module, layer.spec, state)
        view.share_quantizer(state.get_submodule(layer.quantizer))
        norm = None if layer.norm is None else cast(BatchNorm, modules[layer.norm.place])
        found[layer.name] = QuantizedLayer(layer.name, view, norm)
    return list(found.values())


def calls_layers(part: nn.Module) -> bool:
    """Whether a module of an instrumented one calls layers.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU()))
        >>> [name for name, part in prepared.named_modules() if calls_layers(part)]
        ['0']
    """
    return any(site.layer is not None for site in _sites_of(part))


@contextmanager
def outputs_of(prepared: nn.Module, change: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the block the outputs of layers, behind the BatchNorm that belongs to them, are handed to functions.

    Args:
        prepared: from :func:`lq.prepare`.
        change: name of a layer -> what its output is replaced by.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare, set_phase
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
        >>> set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
        >>> with outputs_of(prepared, {"0": torch.ones_like}):
        ...     print(prepared(torch.zeros(1, 4)).tolist())
        [[1.0, 1.0]]
    """
    if isinstance(prepared, fx.GraphModule):
        layers = {layer.name: layer.module for layer in layers_of(prepared)}
        hooks = [layers[name].register_forward_hook(lambda m, a, y, f=f: f(y)) for name, f in change.items()]
        undo = [hook.remove for hook in hooks]
    else:
        undo = [_changed(site, change[name]) for name, site in _last_sites(prepared) if name in change]
    try:
        yield
    finally:
        for step in undo:
            step()


def _changed(site: Site, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    site.change = change
    return lambda: setattr(site, "change", None)


def _last_sites(prepared: nn.Module) -> Iterator[tuple[str, Site]]:
    """The names of layers, and where their outputs come from: the call of the BatchNorm, if there is one."""
    plan = plan_of(prepared).sites
    assert plan is not None
    sites = [site for part in prepared.modules() for site in _sites_of(part)]
    norms = {site.folds_with: site for site in sites if site.folds_with is not None}
    for site in sites:
        if site.layer is not None:
            yield plan.layers[site.number].name, norms.get(site.index, site)


def _sites_of(part: nn.Module) -> list[Site]:
    place = place_of(part)
    return [] if place is None else place.sites()
