"""Backend ``fx``: every layer that can be, and joins of tensors where that pays; annotations by hand say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import fx

from lq.backends.base import Choice, Recorded
from lq.tracing import ops
from lq.tracing.attention import ATTENTION, Attention, attention_products
from lq.tracing.layers import RECURRENT_LAYERS, Layer, seen_of
from lq.tracing.place import Placement, Rounding


def choose(recorded: Recorded) -> Choice:
    """What :mod:`lq.tracing.layers` and :mod:`lq.tracing.place` find.

    Example:
        >>> import torch
        >>> from lq.backends.base import recorded_call
        >>> from lq.config.qconfig import QConfig
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> choice = choose(recorded_call(net, (torch.ones(1, 4),), qconfig=QConfig(exclude=("2",))))
        >>> [layer.name for layer in choice.layers], [(row.name, row.reason) for row in choice.floats]
        (['0'], [('2', "exclude '2'")])
    """
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
    return Choice(layers, floats, _one_range_for_all_steps(placement.sites(), layers), products=reasons)


def _one_range_for_all_steps(sites: list[Rounding], layers: list[Layer]) -> list[Rounding]:
    """The steps of a recurrent layer round hidden states on one grid, and the sums of their gates on another."""
    steps = {layer.node: layer.name for layer in layers if isinstance(layer.module, RECURRENT_LAYERS)}
    groups: dict[tuple[str, str], int] = {}
    found = []
    for site in sites:
        reader = _first(site.users, steps)
        key = ("read", reader) if reader else ("written", steps.get(site.source, ""))
        found.append(replace(site, group=groups.setdefault(key, len(groups))) if key[1] else site)
    return found


def _first(users: Iterable[fx.Node], steps: Mapping[fx.Node, str]) -> str:
    """The recurrent layer that reads a value first, past what only moves it; "" if none does."""
    waiting = list(users)
    for user in waiting:
        if user in steps:
            return steps[user]
        if ops.is_same_grid(user):
            waiting += user.users
    return ""


def _why_float(recorded: Recorded) -> dict[fx.Node, str]:
    """Attention's products, and why each computes in float; "" for those that are to be int8."""
    qconfig = recorded.qconfig
    products = [product.node for product in attention_products(recorded.graph)]
    products += [node for node in recorded.graph.nodes if ops.recorded(node) == ATTENTION]
    if qconfig.attention == "float":
        return dict.fromkeys(products, "attention computes in float unless QConfig(attention='int8') says otherwise")
    found = {}
    for node in products:
        owner = recorded.finder.modules[seen_of(node).stack[-1]]
        # One that was not recorded step by step has no products to quantize.
        otherwise = "its module is excluded" if ops.recorded(node) == ATTENTION else ""
        found[node] = qconfig.excludes(recorded.labels[node], owner) or otherwise
    return found
