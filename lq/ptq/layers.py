"""The layers of a prepared model whose weights are quantized."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from lq.core.modules import QATLayer
from lq.tracing import ops


class QuantizedLayer(NamedTuple):
    """A layer with a quantized weight, and the BatchNorm that is folded into it."""

    name: str
    module: QATLayer
    norm: _BatchNorm | None


def layers_of(prepared: fx.GraphModule) -> list[QuantizedLayer]:
    """The layers with quantized weights, each once, in the order in which they run.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> [layer.name for layer in layers_of(prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))))]
        ['0']
    """
    modules = dict(prepared.named_modules())
    found: dict[str, QuantizedLayer] = {}
    for node in prepared.graph.nodes:
        module = ops.module_of(node, modules)
        if isinstance(module, QATLayer) and str(node.target) not in found:
            norm = prepared.get_submodule(str(cast(fx.Node, node.args[1]).target)) if len(node.args) > 1 else None
            found[str(node.target)] = QuantizedLayer(str(node.target), module, cast("_BatchNorm | None", norm))
    return list(found.values())
