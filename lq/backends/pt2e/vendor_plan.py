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

    Example:
        >>> import torch
        >>> from lq.backends.base import recorded_call
        >>> from lq.backends.pt2e.annotate import annotate
        >>> from lq.backends.pt2e.quantizers import make_quantizer
        >>> from lq.config.qconfig import QConfig
        >>> quantizer = make_quantizer(QConfig(backend="pt2e", quantizer="x86_inductor"))
        >>> annotate(recorded_call(torch.nn.Sequential(torch.nn.Linear(4, 2)), (torch.ones(2, 4),)), quantizer).tensors
        (VendorTensor(node=input_1, readers=None, spec=ActivationSpec(quant_min=0, quant_max=255, ...), group=0),)
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

    Example:
        >>> import torch
        >>> from lq.backends.base import recorded_call
        >>> from lq.backends.pt2e.annotate import annotate
        >>> from lq.backends.pt2e.quantizers import make_quantizer
        >>> from lq.config.qconfig import QConfig
        >>> quantizer = make_quantizer(QConfig(backend="pt2e", quantizer="x86_inductor"))
        >>> annotate(recorded_call(torch.nn.Sequential(torch.nn.Linear(4, 2)), (torch.ones(2, 4),)), quantizer).weights
        {_0: WeightSpec(quant_min=-127, quant_max=127, per_channel=True, learned_scale=False, ...)}
    """

    weights: Mapping[fx.Node, WeightSpec]
    tensors: tuple[VendorTensor, ...]
    notes: tuple[str, ...] = ()
