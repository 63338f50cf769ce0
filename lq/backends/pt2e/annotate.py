"""What a quantizer of torchao wants of a traced module."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from lq.backends.base import Inputs
from lq.backends.pt2e.capture import STEP, capture
from lq.backends.pt2e.vendor_plan import VendorPlan, VendorTensor
from lq.core.modules import QAT_LAYERS
from lq.specs import ActivationSpec, WeightSpec
from lq.tracing.ops import module_of


def annotate(graph_module: fx.GraphModule, quantizer: Any, example: Inputs) -> VendorPlan:
    """Let a quantizer annotate the exported module, and read its wishes off the observers that torchao puts in.

    torchao resolves what is shared, implicitly or by wish; lq asks it for nothing else: what it puts in is thrown away.

    Args:
        graph_module: from :func:`lq.tracing.trace.trace`.
        quantizer: has ``transform_for_annotation``, ``annotate`` and ``validate``, as torchao's.
        example: inputs of one call.

    Raises:
        ValueError: if the module cannot be exported, or the quantizer wants something that lq does not have.
    """
    prepare: Any = importlib.import_module("torchao.quantization.pt2e.prepare").prepare
    captured = quantizer.transform_for_annotation(capture(graph_module, example))
    quantizer.annotate(captured)
    quantizer.validate(captured)
    observed = prepare(
        captured,
        {node.name: ("", type(None)) for node in captured.graph.nodes},
        is_qat=True,
        obs_or_fq_callback=quantizer.prepare_obs_or_fq_callback,
    )
    return _Reader(graph_module, observed).read()


class _Reader:
    def __init__(self, graph_module: fx.GraphModule, observed: fx.GraphModule) -> None:
        self.modules = dict(graph_module.named_modules())
        self.placeholders = {node.name: node for node in graph_module.graph.nodes if node.op == "placeholder"}
        self.observed, self.observers = observed, dict(observed.named_modules(remove_duplicate=False))
        self.groups: dict[int, int] = {}
        self.remarks: dict[str, None] = {}

    def read(self) -> VendorPlan:
        weights: dict[str, WeightSpec] = {}
        tensors: dict[tuple[str, int], VendorTensor] = {}
        for node in self.observed.graph.nodes:
            if node.op != "call_module":
                continue
            observer, source = self.observers[str(node.target)], node.args[0]
            if source.op == "get_attr":
                weights.update(self._weights(node, observer))
                continue
            for tensor in self._tensors(node, source, observer):
                key = (tensor.node, tensor.group)
                tensors[key] = _merged(tensors.get(key), tensor)
        return VendorPlan(weights, tuple(tensors.values()), tuple(self.remarks))

    def _weights(self, node: fx.Node, observer: nn.Module) -> Iterator[tuple[str, WeightSpec]]:
        for user in node.users:
            step = user.meta.get(STEP)
            is_weight = len(user.args) > 1 and user.args[1] is node
            if step is None or not is_weight:
                continue  # a number that became a tensor, or a bias, which int8 kernels add in int32
            if isinstance(module_of(step, self.modules), tuple(QAT_LAYERS)):
                yield step.name, _weight_spec(observer, str(step.target))
            else:
                self._remark(f"a weight that `{step.name}` reads stays float, because it is no layer of its own")

    def _tensors(self, node: fx.Node, source: fx.Node, observer: nn.Module) -> Iterator[VendorTensor]:
        if source.op == "call_module":
            self._remark(f"`{_origin(source)}` is rounded once, not twice")
            return
        spec = _activation_spec(observer, _origin(source))
        group = self.groups.setdefault(id(observer), len(self.groups))
        step = self._step(source)
        if step is not None and {user.meta.get(STEP) for user in node.users} == {step}:
            self._remark(f"what `{step.name}` computes inside is not rounded")
            return
        if step is not None and all(self._is_observer(user) for user in source.users):
            yield VendorTensor(step.name, None, spec, group)
            return
        for user in node.users:
            reader = user.meta.get(STEP)
            if reader is None or self._is_observer(user):
                continue
            read = step if step in reader.all_input_nodes else _only(reader.all_input_nodes)
            if read is not None and reader is not step:
                yield VendorTensor(read.name, (reader.name,), spec, group)

    def _step(self, source: fx.Node) -> fx.Node | None:
        """The traced node that computes this tensor."""
        step: fx.Node | None = source.meta.get(STEP) or self.placeholders.get(source.name)
        if step is None or source.target is not operator.getitem or step.target is operator.getitem:
            return step
        # One of several results of one call.
        return next((n for n in step.users if n.target is operator.getitem and n.args[1] == source.args[1]), None)

    def _is_observer(self, node: fx.Node) -> bool:
        return node.op == "call_module"

    def _remark(self, remark: str) -> None:
        self.remarks[f"the quantizer's wishes are not all fulfilled: {remark}"] = None


def _only(nodes: list[fx.Node]) -> fx.Node | None:
    return nodes[0] if len(nodes) == 1 else None


def _origin(node: fx.Node) -> str:
    step = node.meta.get(STEP)
    return str(step.name if step is not None else node.name)


def _merged(known: VendorTensor | None, new: VendorTensor) -> VendorTensor:
    if known is None:
        return new
    both = None if known.readers is None or new.readers is None else (*known.readers, *new.readers)
    return VendorTensor(new.node, both, new.spec, new.group)


def _grid(observer: nn.Module, what: str) -> tuple[int, int, torch.qscheme]:
    """Ends and scheme of what torchao put in.

    Raises:
        ValueError: if it is dynamic or has fixed scales.
    """
    inner: Any = getattr(observer, "activation_post_process", observer)
    if getattr(inner, "is_dynamic", False) or getattr(observer, "is_dynamic", False):
        raise ValueError(
            f"The quantizer wants {what} to be quantized dynamically, which is not trained; configure it for static "
            "quantization (is_dynamic=False)."
        )
    if "FixedQParams" in type(inner).__name__:
        raise ValueError(
            f"The quantizer wants a fixed scale for {what}, but lq learns all of them from what it sees; switch that "
            "off in the quantizer's configuration, or leave that module out of the target."
        )
    info = torch.iinfo(inner.dtype)
    low = info.min if inner.quant_min is None else int(inner.quant_min)
    high = info.max if inner.quant_max is None else int(inner.quant_max)
    return low, high, inner.qscheme


def _weight_spec(observer: nn.Module, what: str) -> WeightSpec:
    low, high, scheme = _grid(observer, f"the weight of {what}")
    if scheme not in (torch.per_channel_symmetric, torch.per_tensor_symmetric):
        raise ValueError(f"The quantizer wants the weight of {what} as {scheme}; lq has symmetric weights only.")
    end = min(-low, high)
    return WeightSpec(-end, end, per_channel=scheme == torch.per_channel_symmetric)


def _activation_spec(observer: nn.Module, what: str) -> ActivationSpec:
    low, high, scheme = _grid(observer, what)
    if scheme not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        raise ValueError(f"The quantizer wants {what} as {scheme}; lq has one scale per tensor only.")
    return ActivationSpec(low, high, symmetric=scheme == torch.per_tensor_symmetric)
