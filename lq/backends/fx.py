"""Backend ``fx``: every layer that can be, and joins of tensors where that pays; annotations by hand say nothing."""

from __future__ import annotations

from lq.backends.base import Choice, Recorded
from lq.tracing.place import Placement


def choose(recorded: Recorded) -> Choice:
    """What :mod:`lq.tracing.layers` and :mod:`lq.tracing.place` find."""
    layers, floats = recorded.finder.find()
    placement = Placement(
        recorded.graph,
        layers,
        fuse_add=recorded.qconfig.resolved_fuse_add,
        round_cheap=recorded.qconfig.round_cheap,
    )
    return Choice(layers, floats, placement.sites())
