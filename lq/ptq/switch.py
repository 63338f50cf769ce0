"""Quantize only some layers of a prepared model for a while, as if the others had been excluded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import fx, nn

from lq.backends.prepare import plan_of, state_of
from lq.conversion.graph import as_graph
from lq.core.fake_quantize import FakeQuantize
from lq.core.modules import QATLayer
from lq.core.state import QATState
from lq.core.weight_quantizer import WeightQuantizer
from lq.ptq.layers import layers_of
from lq.tracing import ops


@contextmanager
def quantize_only(prepared: nn.Module, layers: Collection[str]) -> Iterator[None]:
    """Within the block only these layers, and the tensors that their int8 kernels would read and write, are quantized.

    It is what ``prepare`` with the other layers in ``exclude`` places, but with the ranges that are there. One thing
    differs: with ``fuse_add`` a convolution that is added to what has become float stays without a quantizer.

    Args:
        prepared: from :func:`lq.prepare`, with ranges and ``fake_quant`` on.
        layers: names of layers.

    Raises:
        ValueError: if one of them is not a quantized layer of the model.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> import copy
        >>> model, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(8, 4)
        >>> prepared = prepare(copy.deepcopy(model))
        >>> _ = calibrate(prepared, [x])
        >>> with quantize_only(prepared, []):
        ...     print(torch.equal(prepared(x), model(x)))
        True
        >>> torch.equal(prepared(x), model(x))
        False
    """
    graph = as_graph(prepared)
    known = [layer.name for layer in layers_of(graph)]
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a quantized layer of this model; those are {', '.join(known)}.")
    active = _Reach(graph, set(layers)).active_modules()
    parts = [m for m in graph.modules() if isinstance(m, (QATLayer, FakeQuantize)) and m not in active]
    with _off(state_of(prepared), parts, _weights_in_place(prepared, set(known) - set(layers))):
        yield


@contextmanager
def all_in_float(prepared: nn.Module) -> Iterator[None]:
    """Within the block nothing is quantized, but all that listens to layers is still called.

    Args:
        prepared: from :func:`lq.prepare`.

    Example:
        >>> import copy, torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.calibrate import calibrate
        >>> from lq.ptq.layers import outputs_of
        >>> model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
        >>> prepared = prepare(copy.deepcopy(model))
        >>> _ = calibrate(prepared, [x])
        >>> with all_in_float(prepared), outputs_of(prepared, {"0": lambda y: y + 1}):
        ...     print(torch.equal(prepared(x), model(x) + 1))
        True
    """
    parts = [m for m in prepared.modules() if isinstance(m, (QATLayer, FakeQuantize))]
    weights = [m for m in prepared.modules() if isinstance(m, WeightQuantizer)]
    with _off(state_of(prepared), parts, weights):
        yield


@contextmanager
def round_only(
    graph: fx.GraphModule, layers: Collection[str], activations: Collection[FakeQuantize] = ()
) -> Iterator[None]:
    """Within the block only the weights of these layers are rounded, and these activations.

    Args:
        graph: of a prepared module; it needs ranges for the activations alone.
        layers: names of layers.
        activations: fake quantizers of the graph.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare, set_phase
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
        >>> exact, graph = net(x), as_graph(prepare(net, example_args=(x,)))
        >>> set_phase(graph, fake_quant=True, observer=False, freeze_bn=True)
        >>> with round_only(graph, []):
        ...     print(torch.equal(graph(x), exact))
        True
        >>> with round_only(graph, ["0"]):
        ...     print(torch.equal(graph(x), exact))
        False
    """
    active: set[nn.Module] = {layer.module for layer in layers_of(graph) if layer.name in layers}
    active.update(activations)
    parts = [m for m in graph.modules() if isinstance(m, (QATLayer, FakeQuantize)) and m not in active]
    with _off(state_of(graph), parts, []):
        yield


@contextmanager
def _off(state: QATState, parts: Sequence[nn.Module], weights: Sequence[WeightQuantizer]) -> Iterator[None]:
    float_state = _FloatState(state)
    for part in parts:
        part.__dict__["state"] = float_state
    for weight in weights:
        weight.off = True
    try:
        yield
    finally:
        for part in parts:
            part.__dict__["state"] = state
        for weight in weights:
            weight.off = False


def _weights_in_place(prepared: nn.Module, layers: set[str]) -> list[WeightQuantizer]:
    """Of a module that is instrumented in place, what quantizes the weights of these layers."""
    if isinstance(prepared, fx.GraphModule):
        return []
    state, sites = state_of(prepared), plan_of(prepared).sites
    assert sites is not None
    names = {layer.quantizer for layer in sites.layers if layer.name in layers}
    return [cast(WeightQuantizer, state.get_submodule(name)) for name in names]


class _FloatState:
    """Stands for the state of a part that is not quantized."""

    fake_quant = False
    observer = False

    def __init__(self, state: QATState) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


class _Reach:
    """Which quantizers a choice of layers needs: those that an active layer or join writes or reads."""

    def __init__(self, prepared: fx.GraphModule, layers: set[str]) -> None:
        self.modules = dict(prepared.named_modules())
        nodes = list(prepared.graph.nodes)
        self.quantizers = [node for node in nodes if isinstance(self._module(node), FakeQuantize)]
        self.layers = {node for node in nodes if isinstance(self._module(node), QATLayer)}
        self.active = {node for node in self.layers if str(node.target) in layers}
        joins = {node for q in self.quantizers if ops.joined_tensors(node := q.args[0])}
        self.kernels = self.layers | joins
        self.active |= joins
        while dropped := {join for join in joins & self.active if not self._runs_in_int8(join)}:
            self.active -= dropped

    def active_modules(self) -> set[nn.Module]:
        """The layers and fake quantizers that stay on."""
        on = {q for q in self.quantizers if q.args[0] in self.active or self._readers(q) & self.active}
        return {self.modules[str(node.target)] for node in on | (self.active & self.layers)}

    def _module(self, node: fx.Node) -> nn.Module | None:
        return ops.module_of(node, self.modules)

    def _runs_in_int8(self, join: fx.Node) -> bool:
        writers = [self._writer(node) for node in ops.joined_tensors(join) or ()]
        quantizer = next(iter(join.users))
        return all(writer in self.active for writer in writers) and self._readers(quantizer, cheap=True) <= self.active

    def _writer(self, node: fx.Node) -> fx.Node | None:
        while node not in self.kernels:
            parent = node.args[0] if node.args else None
            if not isinstance(parent, fx.Node):
                return None
            node = parent
        return node

    def _readers(self, quantizer: fx.Node, cheap: bool = False) -> set[fx.Node]:
        """Layers and joins that read the quantized values; with ``cheap`` also past cheap float operations."""
        found, waiting = set(), list(quantizer.users)
        while waiting:
            node = waiting.pop()
            if node in self.kernels:
                found.add(node)
            elif self._passes(node) or (cheap and self._passes_cheaply(node)):
                waiting += node.users
        return found

    def _passes(self, node: fx.Node) -> bool:
        return ops.is_same_grid(node) or ops.relu_kind(node) is not None

    def _passes_cheaply(self, node: fx.Node) -> bool:
        return ops.is_cheap(node) or isinstance(self._module(node), FakeQuantize)
