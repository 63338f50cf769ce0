"""From an ATen graph with marks to the graph of a prepared module: the walk over it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lq.compat.torch_private import OpOverload
from lq.core.layer import QATLayer
from lq.core.state import STATE, QATState
from lq.tracing import aten
from lq.tracing.aten_calls import Call
from lq.tracing.captured_layers import LayerSite, layer_call, make_batch_norm, make_layer
from lq.tracing.exported import Exported
from lq.tracing.holder import Holder
from lq.tracing.origin import note_origin
from lq.tracing.reading import Constants, is_weight_mark, module_stack, norm_behind

_CHECKS = (
    "_assert_scalar",
    "_assert_async",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


class Translation:
    """Writes the nodes of an exported graph into a new one.

    ``values`` maps each old node to a new one, to a constant, or to a tuple of these where it has several results.

    Args:
        exported: with marks.
        graph: the new one, which has its placeholders already.
        holder: of the tensors and modules of the new graph.
        state: of the model.
        quantizers: a fake quantizer for each number of a rounding mark.
        layers: a layer for each number of a weight mark.

    Example:
        >>> from contextlib import nullcontext
        >>> from lq.tracing.exported import export
        >>> net, graph = nn.ReLU6(), fx.Graph()
        >>> exported = export(net, ((torch.ones(2, 3),), {}), nullcontext)
        >>> translation = Translation(exported, graph, Holder(net), QATState([], [], []), [], [])
        >>> translation.values[exported.inputs[0]] = graph.placeholder("x")
        >>> translation.run()
        >>> [(node, node.target.__name__) for node in translation.new(exported.results)]
        [(relu6, 'relu6')]
    """

    def __init__(
        self,
        exported: Exported,
        graph: fx.Graph,
        holder: Holder,
        state: QATState,
        quantizers: Sequence[nn.Module],
        layers: Sequence[LayerSite],
    ) -> None:
        self.exported, self.graph, self.holder, self.state, self.layers = exported, graph, holder, state, layers
        children = {id(child): name for name, child in state.named_children()}
        self.quantizers = [f"{STATE}.{children[id(module)]}" for module in quantizers]
        self.values: dict[fx.Node, Any] = {}
        self._constants = Constants({node: tensor for node, (_, tensor) in exported.constants.items()})
        self._read: dict[fx.Node, fx.Node] = {}
        self._rounded: dict[tuple[fx.Node, int], fx.Node] = {}
        self._layer_names = self._find_layers()

    def run(self) -> None:
        """Write all but the placeholders of inputs, which are in ``values``, and the output."""
        for node in self.exported.graph.nodes:
            if node.op not in ("placeholder", "output") and node not in self.values:
                self._emit(node)

    def new(self, value: Any) -> Any:
        """The new arguments for old ones."""
        return fx.map_arg(value, self._value)

    def _value(self, node: fx.Node) -> Any:
        if node in self.exported.constants:
            if node not in self._read:
                name, tensor = self.exported.constants[node]
                self._read[node] = self._get(self.holder.tensor(name or node.name, tensor))
            return self._read[node]
        return self.values[node]

    def _get(self, name: str) -> fx.Node:
        """A read of an attribute, ahead of what computes."""
        node = self.graph.create_node("get_attr", name)
        last = [n for n in self.graph.nodes if n.op == "placeholder"]
        if last:
            last[-1].append(node)
        return node

    def _emit(self, node: fx.Node) -> None:
        name = node.target._schema.name if isinstance(node.target, OpOverload) else ""
        if name.partition("::")[2] in _CHECKS or "sym_constrain_range" in name:
            return
        if name == "lq::weight_mark":
            self.values[node] = self.new(node.args[0])
        elif name == "lq::rounding_mark":
            self.values[node] = self._quantizer(node)
        elif node.op == "get_attr":
            raise ValueError(f"control flow of torch ({node.name}) has no int8 graph")
        elif node in self._layer_names:
            self._layer(node)
        else:
            self._operation(node)

    def _quantizer(self, node: fx.Node) -> fx.Node:
        """One for all that read a tensor, though the model rounds it for each of them."""
        source, slot = self.new(node.args[0]), cast(int, node.args[1])
        if (source, slot) not in self._rounded:
            new = self._named(node, "call_module", self.quantizers[slot], (source,), {})
            self._rounded[source, slot] = new
        return self._rounded[source, slot]

    def _operation(self, node: fx.Node) -> None:
        args, kwargs = self.new(node.args), self.new(node.kwargs)
        if node.target is operator.getitem and isinstance(args[0], tuple):
            self.values[node] = args[0][args[1]]
            return
        several = self._has_several_results(node)
        if several and not all(u.target is operator.getitem and u.args[1] == 0 for u in node.users):
            call = Call(node.target, args, kwargs)
            several = False
        elif not several and isinstance(node.meta.get("val"), Tensor) and self._only_casts(node):
            dtype = node.meta["val"].dtype
            same = dtype == node.args[0].meta["val"].dtype  # type: ignore[union-attr]
            call = Call(None, args) if same else Call("to", (args[0], dtype))
        else:
            call = aten.python_call(*_into_equal_parts(node, args), kwargs)
        new = call.args[0]
        if call.target is not None:
            new = self._named(node, call.op, call.target, call.args, dict(call.kwargs))
        self.values[node] = (new,) if several else new

    @staticmethod
    def _only_casts(node: fx.Node) -> bool:
        name = node.target._schema.name if isinstance(node.target, OpOverload) else ""
        return name in ("aten::to", "aten::_to_copy", "aten::type_as", "aten::float", "aten::half", "aten::double")

    @staticmethod
    def _has_several_results(node: fx.Node) -> bool:
        if not isinstance(node.target, OpOverload):
            return False
        name = node.target._schema.name.partition("::")[2]
        return name in aten.WITH_INDICES or name == "_native_batch_norm_legit_no_training"

    # ---- layers -------------------------------------------------------------------------------------------------

    def _find_layers(self) -> dict[fx.Node, str]:
        """The calls of QAT layers, whose weights are marked and do not depend on the input, and where those are."""
        found: list[tuple[fx.Node, LayerSite, QATLayer]] = []
        for node in self.exported.graph.nodes:
            call = layer_call(node)
            if call is None or not is_weight_mark(call.weight):
                continue
            weight, bias = self._constants.value(call.weight), self._constants.value(call.bias)
            if weight is not None and (bias is not None or call.bias is None):
                site = self.layers[int(call.weight.args[1])]
                found.append((node, site, make_layer(call, weight, bias, site, self.state)))
        found.sort(key=lambda row: row[1].name.count("."))  # a layer before those inside of it
        return {node: self.holder.layer(site.name, layer) for node, site, layer in found}

    def _layer(self, node: fx.Node) -> None:
        call = layer_call(node)
        assert call is not None
        norm = norm_behind(node) if self.layers[int(call.weight.args[1])].folds else None
        args: tuple[Any, ...] = (self.new(call.x),)
        if norm is not None:
            args = (*args, self._batch_norm(norm))
        new = self._named(node, "call_module", self._layer_names[node], args, {})
        self.values[node] = new
        if norm is not None:
            self.values[norm] = (new,) if self._has_several_results(norm) else new

    def _batch_norm(self, node: fx.Node) -> fx.Node:
        assert isinstance(node.target, OpOverload)
        named = aten.arguments(node.target, node.args, node.kwargs)
        mean = named["running_mean"]
        name = self.exported.constants[mean][0].rpartition(".")[0] if mean in self.exported.constants else ""
        tensors = {
            k: self._constants.value(v) if isinstance(v, fx.Node) else v for k, v in named.items() if k != "input"
        }
        dim = named["input"].meta["val"].dim()
        return self.graph.get_attr(self.holder.norm(name or "batch_norm", make_batch_norm(tensors, dim)))

    # ---- names --------------------------------------------------------------------------------------------------

    def _named(self, old: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        stack = module_stack(old)
        innermost = list(stack.values())[-1] if stack else ("", "")
        leaf = innermost[1].startswith("torch.nn.modules.") and self.holder.is_leaf(innermost[0])
        name = innermost[0].replace(".", "_") if op != "call_module" and leaf else None
        if isinstance(target, OpOverload) and name is None:
            name = target._schema.name.partition("::")[2]
        new = self.graph.create_node(op, target, args, kwargs, name=name or None)
        new.meta["nn_module_stack"] = stack
        note_origin(new, old)
        return new


def _into_equal_parts(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A split, or chunks, of an open size such as that of the batch, so that it says how many equal parts it makes.

    Of another call a trace makes a constant of the size, and torch.export of all sizes that it was computed from.
    """
    if node.target not in (torch.ops.aten.split.Tensor, torch.ops.aten.chunk.default):
        return node.target, args
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings sympy

    parts, dim = node.meta["val"], args[2] if len(args) > 2 else 0
    sizes = [part.shape[dim] for part in parts]
    if isinstance(sizes[0], int) or not all(statically_known_true(size == sizes[0]) for size in sizes):
        return node.target, args
    return torch.ops.aten.tensor_split.sections, (args[0], len(parts), dim)
