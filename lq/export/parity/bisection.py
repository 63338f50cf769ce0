"""Where an exported model leaves the fake-quantized one: bisection over cut-off models."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from lq.backends.prepare import plan_of, state_of
from lq.core.fake_quantize import FakeQuantize
from lq.core.layer import QATLayer
from lq.core.state import STATE
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import Chosen
from lq.export.parity.gate import ENOUGH_DB
from lq.metrics.fidelity import sqnr
from lq.tracing import ops
from lq.tracing.batch import fixed_batch, set_fixed_batch
from lq.tracing.choice import behind_choices, chooses_boxes
from lq.tracing.structure import Inputs, tensors_of


def first_difference(prepared: fx.GraphModule, choice: Chosen, inputs: Inputs, min_sqnr_db: float = ENOUGH_DB) -> str:
    """The first layer behind which an exported model leaves the fake-quantized one.

    Both are cut off behind a fake quantizer, exported and compared; bisection over the quantizers, in the order in
    which they run, takes log2 of their number of exports.

    Args:
        prepared: in evaluation mode, with ranges.
        choice: the exporter.
        inputs: of one call, on the CPU.
        min_sqnr_db: what a tensor has to reach to count as equal.

    Returns:
        the layer's name and the SQNR behind it; "the output" if all tensors before it agree.

    Example:
        >>> from lq.export.exporters import chosen
        >>> from lq.ptq.static import prepare_static
        >>> x, (choice,) = torch.rand(8, 4), chosen(["torch"])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> first_difference(prepared, choice, ((x,), {}))
        'the output'
        >>> first_difference(prepared, choice, ((x,), {}), min_sqnr_db=math.nan).split()[0]  # which nothing reaches
        'input_1'
    """
    state = state_of(prepared)
    modules = dict(prepared.named_modules())
    nodes = []
    for node in prepared.graph.nodes:
        module = ops.module_of(node, modules)
        if isinstance(module, FakeQuantize) and state.ready(module.slot):
            nodes.append(node)
    low, high, ratio = 0, len(nodes), math.nan
    while low < high:
        middle = (low + high) // 2
        found = _behind(prepared, nodes[middle], choice, inputs)
        if not found >= min_sqnr_db:  # NaN is no agreement
            high, ratio = middle, found
        else:
            low = middle + 1
    if low == len(nodes):
        return "the output"
    return f"{_source(prepared, nodes[low])} ({ratio:.1f} dB)"


def before_detections(prepared: fx.GraphModule) -> fx.GraphModule | None:
    """A detector cut off behind the layers from whose outputs it chooses boxes; ``None`` if it is none.

    What such layers compute can be compared number by number, as the boxes behind the choice cannot. Layers that work
    on chosen boxes, as the second stage of Faster R-CNN, are not among them.

    Args:
        prepared: in evaluation mode, with ranges.

    Returns:
        the model that returns a tuple of their outputs.

    Example:
        >>> import torchvision
        >>> from torch import nn
        >>> from lq.ptq.static import prepare_static
        >>> class Detector(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.boxes, self.scores = nn.Linear(4, 4), nn.Linear(4, 1)
        ...
        ...     def forward(self, x):
        ...         boxes = self.boxes(x)
        ...         return boxes[torchvision.ops.nms(boxes, self.scores(x).flatten(), 0.5)]
        >>> x = torch.rand(8, 4)
        >>> heads = before_detections(prepare_static(Detector(), [x]))
        >>> [tuple(found.shape) for found in heads(x)]
        [(8, 1), (8, 4)]
    """
    modules = dict(prepared.named_modules())
    choices = [node for node in prepared.graph.nodes if chooses_boxes(node)]
    behind = behind_choices(prepared.graph)
    heads = dict.fromkeys(layer for node in choices for layer in _last_layers(node, modules) if layer not in behind)
    return _cut_behind(prepared, *heads) if heads else None


def _last_layers(node: fx.Node, modules: Mapping[str, Any]) -> Iterator[fx.Node]:
    """The layers that a node's inputs come from, none of those before them."""
    seen, left = {node}, [node]
    while left:
        for source in left.pop().all_input_nodes:
            if source in seen:
                continue
            seen.add(source)
            if isinstance(ops.module_of(source, modules), QATLayer):
                yield source
            else:
                left.append(source)


def _source(prepared: fx.GraphModule, node: fx.Node) -> str:
    """The layer or operation whose tensor a fake quantizer rounds."""
    source, name = node.args[0], str(node.target).rpartition(".")[2]
    module = ops.module_of(source, dict(prepared.named_modules())) if isinstance(source, fx.Node) else None
    if isinstance(module, QATLayer):
        return str(cast(fx.Node, source).target)
    found = [tensor.after for tensor in plan_of(prepared).tensors if tensor.name == name]
    # Several tensors may share a range, and with it the fake quantizer.
    return next((after for after in found if after.replace(".", "_") == str(source)), (found or [name])[0])


def _behind(prepared: fx.GraphModule, node: fx.Node, choice: Chosen, inputs: Inputs) -> float:
    (expected,), (got,) = exported_and_not(_cut_behind(prepared, node), choice, inputs)
    return float(sqnr(expected, got)) if expected.shape == got.shape else -math.inf


def exported_and_not(model: fx.GraphModule, choice: Chosen, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that a fake-quantized model returns for a call, and those of its exported form.

    Example:
        >>> from lq.export.exporters import chosen
        >>> from lq.ptq.static import prepare_static
        >>> x, (choice,) = torch.rand(8, 4), chosen(["pt2"])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x])
        >>> (expected,), (got,) = exported_and_not(prepared, choice, ((x,), {}))
        >>> torch.allclose(expected, got, atol=1e-5)
        True
    """
    args, kwargs = inputs
    with torch.no_grad(), scratch() as directory:
        expected = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        info = choice.export(model, inputs, directory)
        signature = Signature.of(model, inputs, expected)
        got = choice.exporter.load(directory, signature, info)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    return tensors_of(expected), tensors_of(got)


def _cut_behind(prepared: fx.GraphModule, *nodes: fx.Node) -> fx.GraphModule:
    """The model that returns the tensor of a node, or a tuple of those of several."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for old in prepared.graph.nodes:
        copies[old] = graph.node_copy(old, lambda n: copies[n])
        if copies.keys() >= set(nodes):
            break
    graph.output(copies[nodes[0]] if len(nodes) == 1 else tuple(copies[node] for node in nodes))
    cut = fx.GraphModule(prepared, graph, class_name=type(prepared).__name__)
    cut.add_module(STATE, state_of(prepared))
    set_fixed_batch(cut, fixed_batch(prepared))
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut.eval()
