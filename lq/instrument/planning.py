"""From a recorded call, and what of it is to be quantized, to a plan of sites."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from lq.config.patterns import Named
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core.own_class import own_class
from lq.instrument.keepers import left_and_entered
from lq.instrument.naming import Naming
from lq.tracing import ops
from lq.tracing.ends import Ends
from lq.tracing.labels import Calls, labels_of
from lq.tracing.layer_calls import LAYERS
from lq.tracing.layers import RECURRENT_LAYERS, Layer, weight_of
from lq.tracing.memory import is_returned
from lq.tracing.names import free_name
from lq.tracing.place import Rounding
from lq.tracing.plan import LayerPlan, TensorPlan
from lq.tracing.recording import DROPPED
from lq.tracing.sites import LayerAt, Sites, TensorAt


class SitePlanner:
    """Names the calls of a recorded graph, and says what happens at each.

    Args:
        target: the module that was recorded.
        calls: every call, in the order in which they were made, in evaluation.
        layers: what is quantized.
        roundings: where values are rounded.
        qconfig: the grids.
        training: every call of a second recording, in training; empty if there is none.
        opened: module, operation and number of steps of the calls that were recorded step by step.

    Example:
        >>> import torch
        >>> from lq.instrument.record import record
        >>> from lq.tracing.layers import LayerFinder
        >>> from lq.tracing.place import Placement
        >>> net, qconfig = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), QConfig()
        >>> call = record(net, (torch.ones(1, 4),), {}).evaluation
        >>> layers, _ = LayerFinder(call.graph, net, qconfig).find()
        >>> planner = SitePlanner(net, call.calls, layers, Placement(call.graph, layers).sites(), qconfig)
        >>> sites, rows, tensors = planner.sites()
        >>> sites.names, rows[0].fused, tensors[1].absorbs
        (('fq_input_1', 'fq_0'), ('ReLU',), 'relu')
    """

    def __init__(
        self,
        target: nn.Module,
        calls: Calls,
        layers: list[Layer],
        roundings: list[Rounding],
        qconfig: QConfig,
        training: Calls = (),
        opened: Iterable[tuple[str, str, int]] = (),
    ) -> None:
        self.opened = tuple(dict.fromkeys(opened))
        self.target, self.layers, self.roundings, self.qconfig = target, layers, roundings, qconfig
        self.modules = dict(target.named_modules(remove_duplicate=False))
        self.by_output = {layer.last: layer for layer in layers}
        self._calls_of_layers = _numbered(layers)
        self.ends = Ends(layers, roundings) if qconfig.keep == "ends" else None
        self._rounded = {node for rounding in roundings for node in (rounding.node, rounding.source)}
        counting = self._rounded | {user for rounding in roundings for user in rounding.users}
        counting |= {n for layer in layers for n in (layer.node, layer.bn) if n is not None}
        self._naming = Naming(self.modules, calls, training, counting, (path for path, _, _ in self.opened))
        self.calls, self._kept = self._naming.calls, self._naming.kept()
        self._apart = self._naming.apart((layer.node, layer.bn) for layer in layers if layer.bn is not None)
        self._labels = labels_of(calls, self.modules)

    # ---- the plan -----------------------------------------------------------------------------------------------

    def label(self, node: fx.Node) -> str:
        """How the plan calls a value: a layer's name, or the operation in its place."""
        if node in self._calls_of_layers:
            return self._calls_of_layers[node]
        if node in self._labels:
            return self._labels[node]
        parent = node.args[0] if node.target is operator.getitem else None
        if isinstance(parent, fx.Node) and parent in self._labels:
            return f"{self._labels[parent]}.{node.args[1]}"  # one of several results, as of a split
        return str(node.name)

    def labels(self) -> list[str]:
        """Names of all values that an override may name: what is rounded, and every call."""
        rounded = [rounding.source for rounding in self.roundings]
        return [self.label(node) for node in dict.fromkeys([*rounded, *self.calls])]

    def sites(self) -> tuple[Sites, list[LayerPlan], tuple[TensorPlan, ...]]:
        """The plan, and the rows of layers and tensors that people read."""
        names, slots = _unique_names(f"fq_{self._names(r)[0][0]}" for r in self.roundings), self._slots()
        firsts = [slots.index(slot) for slot in range(max(slots, default=-1) + 1)]
        specs = [self._activation_spec(self.roundings[i]) for i in firsts]
        layers = _with_quantizers([self._layer(layer) for layer in self.layers])
        tensors = [t for r, slot in zip(self.roundings, slots, strict=True) for t in self._tensors(r, slot)]
        fresh = tuple(at for node, at in self.calls.items() if self._is_fresh(node))
        plan = Sites(
            tuple(path for path in self.modules if path in self._naming.places),
            tuple(names[i] for i in firsts),
            tuple(specs),
            tuple(self.roundings[i].activation for i in firsts),
            tuple(layers),
            tuple(tensors),
            fresh,
            self._naming.differing,
            self.opened,
            tuple((*row, count) for row, count in self._naming.counts.items()),
        )
        rows = [self._row(layer, at) for layer, at in zip(self.layers, layers, strict=True)]
        tensor_rows = tuple(
            TensorPlan(plan.names[slot], self.label(r.source), str(specs[slot]), r.activation)
            for i, (r, slot) in enumerate(zip(self.roundings, slots, strict=True))
            if self.qconfig.backend == "pt2e" or slot not in slots[:i]  # a recurrent layer has one for all steps
        )
        return plan, rows, tensor_rows

    def _slots(self) -> list[int]:
        known: dict[object, int] = {}
        groups = (i if r.group is None else ("group", r.group) for i, r in enumerate(self.roundings))
        return [known.setdefault(group, len(known)) for group in groups]

    def kept(self) -> tuple[str, ...]:
        """Names of the layers and tensors that have more bits because they are at an end of the network."""
        if self.ends is None:
            return ()
        layers, tensors = self.layers, self.roundings
        found = [at.name for at in layers if self._weight_spec(at) != self._weight_spec(at, kept=False)]
        found += [
            self.label(r.source) for r in tensors if self._activation_spec(r) != self._activation_spec(r, kept=False)
        ]
        return tuple(dict.fromkeys(found))

    def _weight_spec(self, layer: Layer, kept: bool = True) -> WeightSpec:
        kept = kept and self.ends is not None and layer.name in self.ends.layers
        return self.qconfig.weight_spec(layer.name, layer.module, layer.spec, kept)

    def _activation_spec(self, rounding: Rounding, kept: bool = True) -> ActivationSpec:
        kept = kept and self.ends is not None and self.ends.has(rounding)
        first, *others = self._names(rounding)
        return self.qconfig.activation_spec(*first, rounding.spec, kept, others)

    def _names(self, rounding: Rounding) -> list[Named]:
        """What patterns may call a rounded value: the layer or call that makes it, this call, what is absorbed."""
        layer, labels = self.by_output.get(rounding.source), [self.label(rounding.source)]
        if rounding.node is not rounding.source:
            labels.append(self.label(rounding.node))
        names: list[Named] = [(label, self.modules.get(label)) for label in labels]
        return names if layer is None else [(layer.name, layer.module), *names]

    def without_effect(self) -> list[str]:
        """What overrides give a grid that nothing has: no weight, or no rounded value."""
        values = [named for rounding in self.roundings for named in self._names(rounding)]
        return self.qconfig.without_effect([(layer.name, layer.module) for layer in self.layers], values)

    def _layer(self, layer: Layer) -> LayerAt:
        weight = weight_of(layer.node)
        held = str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
        spec = self._weight_spec(layer)
        if layer.kind.startswith("conv_transpose"):
            spec = per_tensor(spec)  # the int8 kernels know no more
        norm = None if layer.bn is None else self.calls[layer.bn]
        axis, call = LAYERS[layer.kind].channel_axis, self.calls[layer.node]
        keepers = ((), ()) if layer.bn is None else left_and_entered(layer.node, layer.bn)
        seen = norm in self._apart, call in self._kept
        return LayerAt(layer.name, call, spec, axis, norm, held, "", *seen, *keepers)

    def _row(self, layer: Layer, at: LayerAt) -> LayerPlan:
        fused: tuple[str, ...] = ()
        if at.norm is not None:
            fused = (own_class(self.modules[at.norm.place]).__name__,)
        absorbed = next((r.activation for r in self.roundings if r.source is layer.last), "none")
        if absorbed != "none":
            fused = (*fused, {"relu": "ReLU", "relu6": "ReLU6"}[absorbed])
        held = isinstance(layer.module, (LAYERS[layer.kind].kind, *RECURRENT_LAYERS))
        kind = own_class(layer.module).__name__ if held else layer.kind
        return LayerPlan(layer.name, kind, fused, str(at.spec))

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether an addition is written in place that is rounded, or overwrites what is; it makes a new tensor."""
        if node not in self.calls or not ops.joined_tensors(node):
            return False
        if node not in self._rounded and node.args[0] not in self._rounded:
            return False
        return any(node in n.meta.get("writers", ()) for n in node.all_input_nodes)

    def _tensors(self, rounding: Rounding, slot: int) -> list[TensorAt]:
        node = rounding.node
        if node in self.calls and set(rounding.users) >= set(node.users) and _is_one_tensor(node):
            return [self._result(rounding, slot)]
        found = []
        for user in rounding.users:
            if user in self.calls:
                args, kwargs = user.meta.get(ops.CALLED, (user.args, user.kwargs))
                written = user in node.meta.get("writers", ()) and not self._is_fresh(user)
                paths = [*_paths(args, node), *_paths(kwargs, node)]
                found += [TensorAt(slot, self.calls[user], path, cloned=written) for path in paths]
        return found

    def _result(self, rounding: Rounding, slot: int) -> TensorAt:
        node, source = rounding.node, rounding.source
        absorbs = node is not source
        left, entered = left_and_entered(source, node) if absorbs and ops.SEEN in source.meta else ((), ())
        owned = rounding.owned and self.calls.get(source) not in self._kept
        writers = [w for w in node.meta.get("writers", ()) if w is not node and not self._is_fresh(w)]
        # In training a dropout between the two makes another tensor, of which nobody knows what made it.
        expects = absorbs and rounding.owned and not source.meta.get(DROPPED)
        behind = self.calls.get(source) if expects else None
        cloned = any(w not in (rounding.node, rounding.source) for w in writers)
        cloned = cloned or self._naming.is_written_in_training(self.calls[node])
        return TensorAt(
            slot, self.calls[node], (), absorbs, behind, owned, left, cloned, entered, returned=is_returned(node)
        )


def per_tensor(spec: Any) -> Any:
    """The same grid with one scale for all channels.

    Example:
        >>> str(WeightSpec()), str(per_tensor(WeightSpec()))
        ('int7 [-63, 63] per channel', 'int7 [-63, 63] per tensor')
    """
    return replace(spec, per_channel=False)


def _with_quantizers(layers: Sequence[LayerAt]) -> list[LayerAt]:
    """The layers with the names of what quantizes their weights: calls of one weight share it if they share the grid.

    A convolution and a transposed one may have one weight, and do not have its output channels along one dimension.
    """
    grids = [(at.name, at.spec, at.channel_axis) for at in layers]
    different = list(dict.fromkeys(grids))
    names = dict(zip(different, _unique_names(f"wq_{name}" for name, *_ in different), strict=True))
    return [replace(at, quantizer=names[grid]) for at, grid in zip(layers, grids, strict=True)]


def _numbered(layers: Sequence[Layer]) -> dict[fx.Node, str]:
    """The names of calls of layers; from the second call on with their number."""
    counts: Counter[str] = Counter()
    found = {}
    for layer in layers:
        counts[layer.name] += 1
        found[layer.last] = layer.name if counts[layer.name] == 1 else f"{layer.name} ({counts[layer.name]})"
    return found


def _unique_names(wanted: Iterable[str]) -> list[str]:
    """Names for attributes, without dots and each another one."""
    names: dict[str, None] = {}
    for dotted in wanted:
        names[free_name(dotted.replace(".", "_"), names.__contains__)] = None
    return list(names)


def _is_one_tensor(node: fx.Node) -> bool:
    """Whether a call returns the tensor that stands for it: ``x[i] = y`` returns nothing."""
    return "shape" in node.meta and ops.recorded(node) != "setitem"


def _paths(value: Any, node: fx.Node) -> list[tuple[int | str, ...]]:
    if value is node:
        return [()]
    items: Iterable[tuple[int | str, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    return [(key, *path) for key, inner in items for path in _paths(inner, node)]
