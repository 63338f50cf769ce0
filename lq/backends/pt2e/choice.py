"""The decision of backend ``pt2e``, from what a quantizer wants."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from lq.backends.base import Choice, Recorded
from lq.backends.pt2e.annotate import annotate
from lq.backends.pt2e.quantizers import make_quantizer
from lq.backends.pt2e.vendor_plan import VendorPlan, VendorTensor
from lq.tracing import ops
from lq.tracing.layer_calls import is_layer
from lq.tracing.layers import Layer
from lq.tracing.place import Rounding
from lq.tracing.plan import LayerPlan


def choose(recorded: Recorded) -> Choice:
    """Quantize what the quantizer ``qconfig.quantizer`` wants.

    Raises:
        ImportError: if torchao is not installed.
        ValueError: if there is no example to export the module with, or the module or the quantizer is at fault.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lq.backends.base import recorded_call
        >>> from lq.config.qconfig import QConfig
        >>> qconfig, net = QConfig(backend="pt2e", quantizer="x86_inductor"), nn.Sequential(nn.Linear(4, 2), nn.Tanh())
        >>> choice = choose(recorded_call(net, (torch.ones(2, 4),), qconfig=qconfig))
        >>> [(layer.name, layer.spec.bits) for layer in choice.layers], [site.node.name for site in choice.sites]
        ([('0', 8)], ['input_1'])
    """
    plan = annotate(recorded, make_quantizer(recorded.qconfig))
    if plan.weights and not plan.tensors:
        raise ValueError(
            f"quantizer={recorded.qconfig.quantizer!r} rounds weights and no activation, but lq converts layers only "
            "with both: configure it for static quantization of activations."
        )
    layers, floats = _split(recorded, plan)
    return Choice(layers, floats, _Sites(recorded.graph, layers, plan).all(), plan.notes)


def _split(recorded: Recorded, plan: VendorPlan) -> tuple[list[Layer], list[LayerPlan]]:
    found, floats = recorded.finder.find()
    rounded = {tensor.node for tensor in plan.tensors}
    layers = [
        # What is rounded between a layer and its BatchNorm keeps them apart.
        replace(layer, bn=None if layer.node in rounded else layer.bn, spec=plan.weights[layer.node])
        for layer in found
        if layer.node in plan.weights
    ]
    known = {layer.name for layer in layers}
    reason = f"{recorded.qconfig.quantizer} leaves it in float"
    return layers, floats + [layer.stays_float(reason) for layer in found if layer.name not in known]


class _Sites:
    """Where lq rounds, to do what a quantizer wants.

    A ReLU whose result is rounded is absorbed, as everywhere, unless it reads what is rounded itself; and what has been
    rounded is not rounded again, on the same grid, behind an operation that only moves values.
    """

    def __init__(self, graph: fx.Graph, layers: list[Layer], plan: VendorPlan) -> None:
        self.export_settings = {node: i for i, node in enumerate(graph.nodes)}
        self.outputs = {layer.last for layer in layers}
        self.quantized = {layer.node for layer in layers}
        self.by_node: dict[fx.Node, list[VendorTensor]] = {}
        for tensor in plan.tensors:
            self.by_node.setdefault(tensor.node, []).append(tensor)

    def all(self) -> list[Rounding]:
        """In execution order, one group of tensors with one grid each."""
        found = [
            self._site(node, tensor)
            for node, tensors in self.by_node.items()
            for tensor in tensors
            if not self._is_rounded_before(node, tensor)
        ]
        found = [site for site in found if site.source in self.outputs or not all(map(self._is_float, site.users))]
        absorbed: dict[int | None, set[str]] = {}
        for site in found:
            if not self._is_in_range_of_group(site):
                absorbed.setdefault(site.group, set()).add(site.activation)
        alike = [site if len(absorbed.get(site.group, ())) <= 1 else self._plain(site) for site in found]
        return sorted(alike, key=lambda site: self.export_settings[site.node])

    def _is_in_range_of_group(self, site: Rounding) -> bool:
        """Whether what the group's first member clips leaves this one as it is: it averages or joins such members."""
        if not ops.stays_in_range(site.node):
            return False
        groups = [{t.group for t in self.by_node.get(node, ())} for node in site.node.all_input_nodes]
        return all(site.group in group for group in groups)

    def _site(self, node: fx.Node, tensor: VendorTensor) -> Rounding:
        users = tuple(u for u in node.users if tensor.readers is None or u in tensor.readers)
        everybody = len(users) == len(node.users)
        relu = ops.relu_kind(node)
        source = node.args[0] if relu else None
        if relu and everybody and isinstance(source, fx.Node) and len(source.users) == 1 and source not in self.by_node:
            return Rounding(node, source, users, relu, self._is_fresh(source), tensor.spec, tensor.group)
        return Rounding(node, node, users, "none", everybody and self._is_fresh(node), tensor.spec, tensor.group)

    def _plain(self, site: Rounding) -> Rounding:
        return replace(site, source=site.node, activation="none", owned=False)

    def _is_float(self, user: fx.Node) -> bool:
        """Whether a reader is a layer that stays float, by the user's wish."""
        return is_layer(user) and user not in self.quantized

    def _is_fresh(self, node: fx.Node) -> bool:
        return node in self.outputs or ops.joined_tensors(node) is not None

    def _is_rounded_before(self, node: fx.Node, tensor: VendorTensor) -> bool:
        while ops.is_same_grid(node) and node.args and isinstance(node.args[0], fx.Node):
            reader, node = node, node.args[0]
            for earlier in self.by_node.get(node, ()):
                if earlier.spec == tensor.spec and (earlier.readers is None or reader in earlier.readers):
                    return True
        return False
