"""Backend ``fx``: every layer that can be, and joins of tensors where that pays; annotations by hand say nothing."""

from __future__ import annotations

from lq.backends.base import Choice, Traced
from lq.tracing.fuse import find_layers
from lq.tracing.place import Placement
from lq.tracing.stubs import erase_stubs


def choose(traced: Traced) -> Choice:
    """What :mod:`lq.tracing.fuse` and :mod:`lq.tracing.place` find."""
    erase_stubs(traced.graph_module)
    layers, floats = find_layers(traced.graph_module, traced.qconfig, traced.untraceable)
    modules = dict(traced.graph_module.named_modules())
    placement = Placement(traced.graph_module.graph, modules, layers, fuse_add=traced.qconfig.resolved_fuse_add)
    return Choice(layers, floats, placement.sites())
