"""What a quantizer wants, as plain data about lq's own graph; a checkpoint that holds it loads without torchao."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lq.specs import ActivationSpec, WeightSpec


@dataclass(frozen=True)
class VendorTensor:
    """A tensor that is rounded.

    Args:
        node: name of the traced node that computes it.
        readers: names of the nodes that read it rounded; ``None`` is all.
        spec: its grid.
        group: tensors of one group have one grid.
    """

    node: str
    readers: tuple[str, ...] | None
    spec: ActivationSpec
    group: int


@dataclass(frozen=True)
class VendorPlan:
    """What a quantizer wants of a traced module.

    Args:
        weights: grids of the layers, by the name of the traced node.
        tensors: what is rounded beside weights.
        remarks: what of its wishes lq does not fulfil.

    Example:
        >>> plan = VendorPlan({"fc": WeightSpec(-127, 127)}, (VendorTensor("x", None, ActivationSpec(), 0),))
        >>> VendorPlan.from_dict(plan.to_dict()) == plan
        True
    """

    weights: Mapping[str, WeightSpec]
    tensors: tuple[VendorTensor, ...]
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> VendorPlan:
        """What :meth:`to_dict` made plain."""
        weights = {name: WeightSpec(**spec) for name, spec in plain["weights"].items()}
        tensors = tuple(
            VendorTensor(
                tensor["node"],
                None if tensor["readers"] is None else tuple(tensor["readers"]),
                ActivationSpec(**tensor["spec"]),
                tensor["group"],
            )
            for tensor in plain["tensors"]
        )
        return cls(weights, tensors, tuple(plain["remarks"]))
