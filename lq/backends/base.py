"""What a backend is: it says which layers of a recorded call are quantized, and where its tensors are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx, nn

from lq.config.qconfig import QConfig
from lq.tracing.layers import Layer, LayerFinder
from lq.tracing.place import Rounding
from lq.tracing.plan import LayerPlan
from lq.tracing.structure import Inputs


@dataclass(frozen=True)
class Recorded:
    """A call of a module that is going to be prepared.

    Args:
        root: the float module.
        graph: of the call, see :class:`lq.tracing.recording.Recorder`.
        qconfig: what the user wants.
        finder: finds its layers.
        labels: what each call is called in the plan.
        example: inputs of the call, if there were any.
    """

    root: nn.Module
    graph: fx.Graph
    qconfig: QConfig
    finder: LayerFinder
    labels: Mapping[fx.Node, str]
    example: Inputs | None = None


@dataclass(frozen=True)
class Choice:
    """What a backend has decided; everything else, from training to export, is the same for all.

    Args:
        layers: what is quantized.
        floats: plan rows of layers that stay float, with the reasons.
        sites: where tensors are rounded.
        notes: what the user should know, a sentence each.
        products: calls of attention's products, and why each computes in float; "" for those in int8.
    """

    layers: list[Layer]
    floats: list[LayerPlan]
    sites: list[Rounding]
    notes: tuple[str, ...] = ()
    products: Mapping[fx.Node, str] = field(default_factory=dict)


class Backend(Protocol):
    """Decides what of a recorded call is quantized.

    Raises:
        ValueError: if the module is none that this backend can do anything with.
    """

    def __call__(self, recorded: Recorded) -> Choice:
        """The decision."""
