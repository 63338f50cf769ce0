"""What a quantizer wants of a recorded call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from lq.config.specs import ActivationSpec, WeightSpec


@dataclass(frozen=True)
class VendorTensor:
    """A tensor that is rounded.

    Args:
        node: that computes it.
        readers: the nodes that read it rounded; ``None`` is all.
        spec: its grid.
        group: tensors of one group have one grid.
    """

    node: fx.Node
    readers: tuple[fx.Node, ...] | None
    spec: ActivationSpec
    group: int


@dataclass(frozen=True)
class VendorPlan:
    """What a quantizer wants.

    Args:
        weights: grids of the layers.
        tensors: what is rounded beside weights.
        notes: what of its wishes lq does not fulfil.
    """

    weights: Mapping[fx.Node, WeightSpec]
    tensors: tuple[VendorTensor, ...]
    notes: tuple[str, ...] = ()
