"""Modules that mark their sites by hand, as the instrumentation does while a model is captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lq.core.marks  # noqa: F401
from lq.backends.prepare import set_phase
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core.fake_quantize import FakeQuantize
from lq.core.modes import modes_kept
from lq.core.state import QATState
from lq.tracing.capture import LayerSite, capture
from lq.tracing.plan import Plan


@dataclass
class Sites:
    """Gives numbers to marks; ``body`` of a net calls these methods."""

    qconfig: QConfig = field(default_factory=lambda: as_qconfig("portable"))
    activations: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    layers: list[LayerSite] = field(default_factory=list)

    def round(self, x: Tensor, name: str, activation: str = "none") -> Tensor:
        name = f"fq_{name}"
        if name not in self.names:
            self.names.append(name)
            self.activations.append(activation)
        return torch.ops.lq.rounding_mark(x, self.names.index(name), activation)

    def weight(self, weight: Tensor, name: str, folds: bool = False) -> Tensor:
        known = [site.name for site in self.layers]
        if name not in known:
            self.layers.append(LayerSite(name, WeightSpec(), folds))
            known.append(name)
        return torch.ops.lq.weight_mark(weight, known.index(name))


class Marked(nn.Module):
    """``body(self, sites, *args)`` with any children."""

    def __init__(self, body: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.body, self.sites = body, Sites()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, self.sites, *args, **kwargs)

    def convolve(self, name: str, x: Tensor, folds: bool = False) -> Tensor:
        layer: Any = self.get_submodule(name)
        return layer._conv_forward(x, self.sites.weight(layer.weight, name, folds), layer.bias)

    def linear(self, name: str, x: Tensor) -> Tensor:
        layer: Any = self.get_submodule(name)
        return F.linear(x, self.sites.weight(layer.weight, name), layer.bias)


def captured(net: nn.Module, *args: Any, qconfig: str = "portable", **kwargs: Any) -> fx.GraphModule:
    """The prepared graph of a net that marks its sites, without ranges."""
    sites: Sites = net.sites  # type: ignore[assignment]
    with torch.no_grad(), modes_kept(net):
        net.eval()(*args, **kwargs)
    state = QATState(sites.names, [ActivationSpec()] * len(sites.names), sites.activations)
    for slot, name in enumerate(sites.names):
        state.add_module(name, FakeQuantize(state, slot))
    state.qconfig, state.plan = as_qconfig(qconfig), Plan(type(net).__name__, qconfig, (), ())
    quantizers: Sequence[nn.Module] = [state.get_submodule(name) for name in sites.names]
    return capture(net, state, quantizers, sites.layers, (args, kwargs), nullcontext)


def with_ranges(graph: fx.GraphModule, *args: Any, **kwargs: Any) -> fx.GraphModule:
    """Calibrated with one batch and switched to fake quantization."""
    set_phase(graph, fake_quant=False, observer=True, freeze_bn=True)
    state: Any = graph.qat_state
    with torch.no_grad():
        for module in (state, *state.modules()):
            module.training = True
        graph(*args, **kwargs)
    set_phase(graph, fake_quant=True, observer=False, freeze_bn=True)
    return graph.eval()
