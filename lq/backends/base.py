"""What a backend is: it says which layers of a recorded call are quantized, and where its tensors are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx, nn

from lq.config.qconfig import QConfig
from lq.instrument.record import record
from lq.tracing.labels import Calls, labels_of
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

    Example:
        >>> import torch
        >>> recorded = recorded_call(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.ones(1, 4),))
        >>> list(recorded.labels.values())
        ['0', '1']
        >>> [layer.name for layer in recorded.finder.find()[0]]
        ['0']
    """

    root: nn.Module
    graph: fx.Graph
    qconfig: QConfig
    finder: LayerFinder
    labels: Mapping[fx.Node, str]
    example: Inputs | None = None

    @classmethod
    def of(
        cls, root: nn.Module, graph: fx.Graph, calls: Calls, qconfig: QConfig, example: Inputs | None = None
    ) -> Recorded:
        """What backends get of a call.

        Args:
            root: the float module.
            graph: of the call.
            calls: all of its calls of functions.
            qconfig: what the user wants.
            example: inputs of the call, if there were any.
        """
        finder = LayerFinder(graph, root, qconfig)
        return cls(root, graph, qconfig, finder, labels_of(calls, finder.modules), example)


def recorded_call(
    root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, qconfig: QConfig | None = None
) -> Recorded:
    """Call a module once, and give what a backend gets of it: for those who write or test one.

    Args:
        root: a float module; it stays as it is.
        args: positional inputs of the call.
        kwargs: keyword inputs.
        qconfig: what is wanted; ``None`` is ``QConfig()``.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> [(node.op, node.name) for node in recorded_call(net, (torch.ones(1, 4),)).graph.nodes][-3:]
        [('call_function', '_0'), ('call_function', '_1'), ('output', 'output')]
    """
    qconfig, named = qconfig or QConfig(), dict(kwargs or {})
    recorder = record(root, args, named, stubs=qconfig.backend == "eager").evaluation
    return Recorded.of(root, recorder.graph, recorder.calls, qconfig, (args, named))


@dataclass(frozen=True)
class Choice:
    """What a backend has decided; everything else, from training to export, is the same for all.

    Args:
        layers: what is quantized.
        floats: plan rows of layers that stay float, with the reasons.
        sites: where tensors are rounded.
        notes: what the user should know, a sentence each.
        products: calls of attention's products, and why each computes in float; "" for those in int8.

    Example:
        >>> import torch
        >>> from lq.backends.fx import choose
        >>> choice = choose(recorded_call(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.ones(1, 4),)))
        >>> [layer.name for layer in choice.layers], [(site.source.name, site.activation) for site in choice.sites]
        (['0'], [('input_1', 'none'), ('_0', 'relu')])
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

    Example:
        >>> import torch
        >>> def first_layer(recorded: Recorded) -> Choice:
        ...     (first, *others), floats = recorded.finder.find()
        ...     return Choice([first], floats + [layer.stays_float("it is not the first") for layer in others], [])
        >>> backend: Backend = first_layer
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
        >>> [(row.name, row.reason) for row in backend(recorded_call(net, (torch.ones(1, 4),))).floats]
        [('1', 'it is not the first')]
    """

    def __call__(self, recorded: Recorded) -> Choice:
        """The decision."""
