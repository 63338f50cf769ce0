"""Where an exported model leaves the fake-quantized one: bisection over cut-off models."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import fx

from lq.backends.prepare import plan_of, state_of
from lq.core.fake_quantize import FakeQuantize
from lq.core.layer import QATLayer
from lq.core.state import STATE
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import Chosen
from lq.export.parity.gate import ENOUGH_DB
from lq.metrics.fidelity import sqnr
from lq.metrics.outputs import main_tensor
from lq.tracing import ops
from lq.tracing.structure import Inputs


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
    cut = _cut_behind(prepared, node)
    with torch.no_grad(), scratch() as directory:
        expected = main_tensor(cut(*inputs[0], **inputs[1]))
        info = choice.export(cut, inputs, directory)
        signature = Signature.of(cut, inputs, expected)
        got = choice.exporter.load(directory, signature, info)(*inputs[0], **inputs[1])
    return float(sqnr(expected, main_tensor(got)))


def _cut_behind(prepared: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The model that returns the tensor of a node."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for old in prepared.graph.nodes:
        copies[old] = graph.node_copy(old, lambda n: copies[n])
        if old is node:
            break
    graph.output(copies[node])
    cut = fx.GraphModule(prepared, graph, class_name=type(prepared).__name__)
    cut.add_module(STATE, state_of(prepared))
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut.eval()
