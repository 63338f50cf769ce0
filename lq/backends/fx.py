"""Backend ``fx``: every layer that can be, and joins of tensors where that pays; annotations by hand say nothing."""

from __future__ import annotations

from torch import fx

from lq.backends.base import Choice, Recorded
from lq.tracing import ops
from lq.tracing.attention import ATTENTION, Attention, attention_products
from lq.tracing.layers import seen_of
from lq.tracing.place import Placement


def choose(recorded: Recorded) -> Choice:
    """What :mod:`lq.tracing.layers` and :mod:`lq.tracing.place` find."""
    layers, floats = recorded.finder.find()
    reasons = _why_float(recorded)
    products = tuple(product for product in attention_products(recorded.graph) if not reasons[product.node])
    placement = Placement(
        recorded.graph,
        layers,
        fuse_add=recorded.qconfig.resolved_fuse_add,
        round_cheap=recorded.qconfig.round_cheap,
        attention=Attention(products, recorded.qconfig.probabilities, recorded.qconfig.factors),
    )
    return Choice(layers, floats, placement.sites(), products=reasons)


def _why_float(recorded: Recorded) -> dict[fx.Node, str]:
    """Attention's products, and why each computes in float; "" for those that are to be int8."""
    qconfig = recorded.qconfig
    products = [product.node for product in attention_products(recorded.graph)]
    products += [node for node in recorded.graph.nodes if ops.recorded(node) == ATTENTION]
    if qconfig.attention == "float":
        return dict.fromkeys(products, "attention computes in float unless QConfig(attention='int8') says otherwise")
    modules = recorded.finder.modules
    owners = {node: modules[seen_of(node).stack[-1]] for node in products}
    return {node: qconfig.excludes(recorded.labels[node], owners[node]) or "" for node in products}
