"""What a backend is: it says which layers of a traced module are quantized, and where its tensors are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx, nn

from lq.qconfig import QConfig
from lq.tracing.fuse import Layer
from lq.tracing.place import Rounding
from lq.tracing.plan import LayerPlan

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Traced:
    """A module that is going to be prepared.

    Args:
        root: the float module.
        graph_module: its graph, from :func:`lq.tracing.trace.trace`; a backend may drop nodes that compute nothing.
        untraceable: dotted names of submodules that run as they are.
        qconfig: what the user wants.
        example: inputs of one call, if there are any.
        known: what :attr:`Choice.vendor` was when the module was prepared before, so that it need not be found again.
    """

    root: nn.Module
    graph_module: fx.GraphModule
    untraceable: tuple[str, ...]
    qconfig: QConfig
    example: Inputs | None = None
    known: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Choice:
    """What a backend has decided; everything else, from training to export, is the same for all.

    Args:
        layers: what is quantized.
        floats: plan rows of layers that stay float, with the reasons.
        sites: where tensors are rounded.
        remarks: what the user should know, a sentence each.
        vendor: what came from outside of lq, as plain data; checkpoints keep it.
    """

    layers: list[Layer]
    floats: list[LayerPlan]
    sites: list[Rounding]
    remarks: tuple[str, ...] = ()
    vendor: Mapping[str, Any] | None = None


class Backend(Protocol):
    """Decides what of a traced module is quantized.

    Raises:
        ValueError: if the module is none that this backend can do anything with.
    """

    def __call__(self, traced: Traced) -> Choice:
        """The decision."""
