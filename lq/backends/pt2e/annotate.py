"""What a quantizer of torchao wants of a recorded call."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from lq.backends.base import Recorded
from lq.backends.pt2e.capture import RESULT, STEP, capture, has_batch_norm, without_batch_norm
from lq.backends.pt2e.vendor_plan import VendorPlan, VendorTensor
from lq.config.specs import ActivationSpec, WeightSpec
from lq.tracing.layer_calls import WEIGHTED_PRODUCTS, is_layer
from lq.tracing.layers import seen_of, weight_of
from lq.tracing.ops import SEEN, recorded
from lq.tracing.recording import LEAF, overwritten


def annotate(call: Recorded, quantizer: Any) -> VendorPlan:
    """Let a quantizer annotate the exported call, and read its wishes off the observers that torchao puts in.

    torchao resolves what is shared, implicitly or by wish; lq asks it for nothing else: what it puts in is thrown away.

    Args:
        call: of the module, with its inputs.
        quantizer: has ``transform_for_annotation``, ``annotate`` and ``validate``, as torchao's. It sees each
            BatchNorm, as in ``prepare_qat_pt2e``. If it is not configured for QAT, or rounds between a convolution and
            its BatchNorm, which torchao could then not fold, it is asked again, and sees none behind a layer, as in
            ``prepare_pt2e``.

    Raises:
        ValueError: if the call cannot be exported, or the quantizer wants something that lq does not have.

    Example:
        >>> from lq.backends.base import recorded_call
        >>> from lq.backends.pt2e.quantizers import make_quantizer
        >>> from lq.config.qconfig import QConfig
        >>> call = recorded_call(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.ones(2, 4),))
        >>> plan = annotate(call, make_quantizer(QConfig(backend="pt2e", quantizer="x86_inductor")))
        >>> [(node.name, str(spec)) for node, spec in plan.weights.items()]
        [('_0', 'int8 [-127, 127] per channel')]
        >>> [(tensor.node.name, str(tensor.spec)) for tensor in plan.tensors]
        [('input_1', 'uint8 [0, 255] affine, moving_average_minmax')]
    """
    captured = capture(call)
    folds = has_batch_norm(captured)
    observed = _observed(captured, quantizer)
    if folds and (not _is_for_qat(observed) or _parts_batch_norm(observed)):
        observed = _observed(without_batch_norm(capture(call, training=False)), quantizer)
    return _Reader(observed).read()


def _observed(captured: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
    prepare: Any = importlib.import_module("torchao.quantization.pt2e.prepare").prepare
    captured = quantizer.transform_for_annotation(captured)
    quantizer.annotate(captured)
    quantizer.validate(captured)
    observed: fx.GraphModule = prepare(
        captured,
        {node.name: ("", type(None)) for node in captured.graph.nodes},
        is_qat=True,
        obs_or_fq_callback=quantizer.prepare_obs_or_fq_callback,
    )
    return observed


def _is_for_qat(observed: fx.GraphModule) -> bool:
    """Whether weights get fake quantizers, which hold an observer, rather than plain observers."""
    observers = dict(observed.named_modules(remove_duplicate=False))
    return all(
        hasattr(observers[str(node.target)], "activation_post_process")
        for node in observed.graph.nodes
        if node.op == "call_module" and any(_reads_weight(user, node) for user in node.users)
    )


def _parts_batch_norm(observed: fx.GraphModule) -> bool:
    """Whether anything is rounded between a convolution and the BatchNorm that follows it."""
    return any(
        node.op == "call_module"
        and "conv" in str(node.args[0].target)
        and any(user.target is torch.ops.aten.batch_norm.default for user in node.users)
        for node in observed.graph.nodes
    )


class _Reader:
    def __init__(self, observed: fx.GraphModule) -> None:
        self.observed, self.observers = observed, dict(observed.named_modules(remove_duplicate=False))
        self.groups: dict[int, int] = {}
        self.notes: dict[str, None] = {}

    def read(self) -> VendorPlan:
        weights: dict[fx.Node, WeightSpec] = {}
        tensors: dict[tuple[fx.Node, int], VendorTensor] = {}
        for node in self.observed.graph.nodes:
            if node.op != "call_module":
                continue
            observer, source = self.observers[str(node.target)], node.args[0]
            weights.update(self._weights(node, observer))
            if source.op == "get_attr" or all(_reads_weight(user, node) for user in node.users):
                continue
            for tensor in self._tensors(node, source, observer):
                key = (tensor.node, tensor.group)
                tensors[key] = _merged(tensors.get(key), tensor)
        return VendorPlan(weights, tuple(tensors.values()), tuple(self.notes))

    def _weights(self, node: fx.Node, observer: nn.Module) -> Iterator[tuple[fx.Node, WeightSpec]]:
        for user in node.users:
            if _reads_weight(user, node):  # not a number that became a tensor, or a bias, which is added in int32
                yield user.meta[STEP], _weight_spec(observer, _name(user.meta[STEP]))

    def _tensors(self, node: fx.Node, source: fx.Node, observer: nn.Module) -> Iterator[VendorTensor]:
        if source.op == "call_module":
            self._note(f"`{_origin(source)}` is rounded once, not twice")
            return
        spec = _activation_spec(observer, _origin(source))
        group = self.groups.setdefault(id(observer), len(self.groups))
        step = self._step(source)
        home = step if step is not None else _home(source)
        if home is not None and {user.meta.get(STEP, home if step is None else None) for user in node.users} == {home}:
            self._note(f"what `{_name(home)}` computes inside is not rounded")
            return
        is_overwritten = step is not None and any(user.target is overwritten for user in step.users)
        if step is not None and not is_overwritten and all(self._is_observer(user) for user in source.users):
            yield VendorTensor(step, None, spec, group)
            return
        for user in node.users:
            reader = user.meta.get(STEP)
            if reader is None or self._is_observer(user):
                continue
            inputs = [n for n in reader.all_input_nodes if not n.meta.get("constant")]
            read = step if step in inputs else _only(inputs)
            if read is not None and reader is not step:
                yield VendorTensor(read, (reader,), spec, group)

    def _step(self, source: fx.Node) -> fx.Node | None:
        """The recorded node that computes this tensor."""
        step: fx.Node | None = source.meta.get(RESULT, source.meta.get(STEP))
        if step is None or source.target is not operator.getitem or step.target is operator.getitem:
            return step
        # One of several results of one call.
        return next((n for n in step.users if n.target is operator.getitem and n.args[1] == source.args[1]), None)

    def _is_observer(self, node: fx.Node) -> bool:
        return node.op == "call_module"

    def _note(self, note: str) -> None:
        self.notes[f"lq deviates from the quantizer: {note}"] = None


def _reads_weight(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is the weight of the layer that ``user`` computes."""
    step = user.meta.get(STEP)
    if step is None or not is_layer(step) or user.args[1:2] != (node,):
        return False
    if recorded(step) in WEIGHTED_PRODUCTS:  # quantizers take both factors for activations
        return False
    weight = weight_of(step)
    return isinstance(weight, fx.Node) and bool(weight.meta.get("constant"))


def _home(node: fx.Node) -> fx.Node | None:
    """The recorded node that computes a node of the vendor's own, which took an operation apart.

    It is the reader of what comes of it, if that computes it from its own input; else what is read there.
    """
    below, after = {node}, None
    while below and after is None:
        below = {user for last in below for user in last.users}
        after = next((user.meta[STEP] for user in sorted(below) if STEP in user.meta), None)
    read = None if after is None else _only([n for n in after.all_input_nodes if not n.meta.get("constant")])
    above, known = {node}, set()
    while above:
        above = {n for last in above for n in last.all_input_nodes}
        known |= {n.meta[STEP] for n in above if STEP in n.meta}
        above = {n for n in above if STEP not in n.meta}
    return after if read in known else read


def _name(step: fx.Node) -> str:
    """The module that makes a call, or the operation in it."""
    if SEEN not in step.meta:
        return str(step.name)
    seen = seen_of(step)
    return seen.stack[-1] if LEAF in step.meta else f"{seen.stack[-1]}.{seen.operation}".lstrip(".")


def _only(nodes: list[fx.Node]) -> fx.Node | None:
    return nodes[0] if len(nodes) == 1 else None


def _origin(node: fx.Node) -> str:
    step = node.meta.get(STEP)
    return _name(step) if step is not None else str(node.name)


def _merged(known: VendorTensor | None, new: VendorTensor) -> VendorTensor:
    if known is None:
        return new
    both = None if known.readers is None or new.readers is None else (*known.readers, *new.readers)
    return VendorTensor(new.node, both, new.spec, new.group)


def _grid(observer: nn.Module, what: str) -> tuple[int, int, torch.qscheme]:
    """Ends and scheme of what torchao put in.

    Raises:
        ValueError: if it is dynamic, has fixed scales, or does not tell.
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
    if not hasattr(inner, "quant_min"):
        raise ValueError(
            f"The quantizer wants {what} by {type(inner).__name__}, which does not say which integers; lq has one "
            "scale per channel or per tensor, and integers of at most 8 bits for weights."
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
    symmetric = scheme == torch.per_tensor_symmetric
    if symmetric and low == 0:  # torchao puts the zero in the middle: these are the signed integers, shifted
        low, high = -(high // 2) - 1, high // 2
    return ActivationSpec(low, high, symmetric=symmetric)
