"""The prepared graph of a model that is quantized in place: what exporters and analyses read.

The model is exported once with marks in the places where it rounds (:mod:`lq.core.marks`); the ATen graph is written
anew in torch's Python API, with quantized layers and fake quantizers where the marks were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import fx, nn

from lq.core.state import STATE, QATState
from lq.tracing.axes import Axes, named_tensors, set_open_axes
from lq.tracing.batch import set_fixed_batch
from lq.tracing.call_signature import add_placeholders, output_of
from lq.tracing.captured_layers import LayerSite
from lq.tracing.exported import export
from lq.tracing.fixed_arguments import note_sizes
from lq.tracing.holder import Holder
from lq.tracing.structure import Inputs, tensors_of
from lq.tracing.translation import Translation

__all__ = ["LayerSite", "capture"]


def capture(
    target: nn.Module,
    state: QATState,
    quantizers: Sequence[nn.Module],
    layers: Sequence[LayerSite],
    example: Inputs,
    marking: Callable[[], AbstractContextManager[Any]],
    inner: str = "",
    axes: Axes | None = None,
) -> fx.GraphModule:
    """The graph of ``target`` in evaluation, with QAT layers and fake quantizers in the places of its marks.

    Args:
        target: calls the operations of :mod:`lq.core.marks` while ``marking`` is entered; it is left as it is.
        state: of the model; the graph holds it as its submodule ``qat_state``.
        quantizers: the fake quantizer, a child of ``state``, for each number of a rounding mark.
        layers: the layer for each number of a weight mark.
        example: inputs of one call, on the device of the model.
        marking: entered around the export.
        inner: dotted name of a module to recommend if the whole cannot be exported.
        axes: dimensions of inputs that shall be dynamic, too; see :func:`lq.tracing.axes.checked_axes`.

    Returns:
        a GraphModule in evaluation mode, called as ``target`` is, that shares parameters and buffers with it. Its batch
        is dynamic where the code allows it; see :func:`lq.tracing.batch.fixed_batch`.

    Raises:
        ValueError: if the model has no graph, or none with these dimensions dynamic, naming the line.

    Example:
        >>> import torch
        >>> from contextlib import nullcontext
        >>> from torch.nn import functional as F
        >>> from lq.core.fake_quantize import FakeQuantize
        >>> from lq.config.specs import ActivationSpec, WeightSpec
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         x = torch.ops.lq.rounding_mark(x, 0, "none")
        ...         return F.linear(x, torch.ops.lq.weight_mark(self.fc.weight, 0), self.fc.bias)
        >>> state = QATState(["fq_x"], [ActivationSpec()], ["none"])
        >>> state.add_module("fq_x", FakeQuantize(state, 0))
        >>> layers = [LayerSite("fc", WeightSpec())]
        >>> graph = capture(Net(), state, [state.fq_x], layers, ((torch.ones(3, 4),), {}), nullcontext)
        >>> [str(node.target) for node in graph.graph.nodes]
        ['x', 'qat_state.fq_x', 'fc', 'qat_state', 'output']
    """
    exported = export(target, example, marking, inner, axes)
    graph, holder = fx.Graph(), Holder(target)
    leaves = add_placeholders(graph, target, *exported.arguments)
    translation = Translation(exported, graph, holder, state, quantizers, layers)
    names = {id(tensor): name for name, tensor in named_tensors(target, example).items()}
    note_sizes(leaves, [names[id(tensor)] for tensor in tensors_of(example)], exported.sizes)
    translation.values.update(zip(exported.inputs, leaves, strict=True))
    translation.run()
    output = output_of(graph, exported.output, translation.new(exported.results))
    graph.output(graph.call_module(STATE, (output,)))
    holder.root.add_module(STATE, state)
    graph_module = fx.GraphModule(holder.root, graph, class_name=type(target).__name__)
    graph_module.graph.eliminate_dead_code()
    graph_module = fx.GraphModule(holder.root, graph_module.graph, class_name=type(target).__name__)
    graph_module.graph.lint()
    set_fixed_batch(graph_module, exported.batch, exported.constant_sizes)
    set_open_axes(graph_module, exported.axes)
    shared = set(state.modules())  # whose modes are those of the model
    for module in graph_module.modules():
        module.training = module.training and module in shared
    return graph_module
