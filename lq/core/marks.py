"""Marks: what a site leaves in a graph of ``torch.export``, so that the graph says where values are rounded.

While a model is captured, its sites do not round; they call these operations, which compute what the float model does.
:mod:`lq.tracing.capture` finds them in the graph and puts quantized layers and fake quantizers in their place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation that a fake quantizer absorbs: "none", "relu" or "relu6".

    Example:
        >>> activate(torch.tensor([-1.0, 9.0]), "relu6")
        tensor([0., 6.])
    """
    if activation == "relu":
        return F.relu(x)
    return F.relu6(x) if activation == "relu6" else x


@torch.library.custom_op("lq::weight_mark", mutates_args=())
def _weight_mark(weight: Tensor, site: int) -> Tensor:
    return weight.clone()


@_weight_mark.register_fake
def _(weight: Tensor, site: int) -> Tensor:
    return torch.empty_like(weight)


@torch.library.custom_op("lq::rounding_mark", mutates_args=())
def _rounding_mark(x: Tensor, slot: int, activation: str) -> Tensor:
    return activate(x, activation).clone()


@_rounding_mark.register_fake
def _(x: Tensor, slot: int, activation: str) -> Tensor:
    return torch.empty_like(x)


def weight_mark(weight: Tensor, site: int) -> Tensor:
    """``weight``, marked as the one that layer ``site`` quantizes.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x, weight: x @ weight_mark(weight, 3))(torch.ones(1, 2), torch.ones(2, 4)).graph
        >>> [node.args[1] for node in graph.nodes if node.target is torch.ops.lq.weight_mark.default]
        [3]
    """
    marked: Tensor = _weight_mark(weight, site)
    return marked


def rounding_mark(x: Tensor, slot: int, activation: str) -> Tensor:
    """``x`` behind its activation, marked as the tensor that the fake quantizer of ``slot`` rounds.

    Example:
        >>> rounding_mark(torch.tensor([-1.0, 0.26]), 0, "relu")  # nothing is rounded
        tensor([0.0000, 0.2600])
    """
    marked: Tensor = _rounding_mark(x, slot, activation)
    return marked
