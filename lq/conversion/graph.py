"""A prepared module as a graph: what conversion, exports and the analysis of layers read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import fx, nn

from lq.backends.in_place import like
from lq.backends.prepare import plan_of, state_of
from lq.compat.torch_private import BatchNorm
from lq.core.fake_quantize import FakeQuantize
from lq.core.lsq import LearnedScale
from lq.core.sharding import require_whole
from lq.core.weight_quantizer import WeightQuantizer
from lq.instrument.attach import instrument_of
from lq.instrument.hooks import without_later_hooks
from lq.instrument.places import Instrument
from lq.tracing.axes import Axes, asked_axes
from lq.tracing.capture import LayerSite, capture
from lq.tracing.exported_call import ReadArguments
from lq.tracing.inputs import made_inputs
from lq.tracing.plan import Plan
from lq.tracing.sites import LayerAt
from lq.tracing.structure import Inputs


def as_graph(
    prepared: nn.Module, example: Inputs | None = None, name: str = "", axes: Axes | None = None
) -> fx.GraphModule:
    """The graph of a prepared module, with quantized layers and fake quantizers as modules; in evaluation mode.

    Parameters, buffers and ranges are those of the module itself, so that a change of one is a change of the other.

    Args:
        prepared: from :func:`lq.prepare`; what is a graph already is returned as it is.
        example: positional and keyword inputs of one call; ``None`` takes those that it was planned with, or was first
            called with.
        name: of it in the user's module; errors recommend parts by their names there.
        axes: dimensions of inputs that shall be dynamic, too; see :func:`lq.tracing.axes.checked_axes`.

    Returns:
        the graph.

    Raises:
        ValueError: if the module is not prepared, is split among processes, was never called, or cannot be exported;
            the message names the line. Or if a graph that has no dynamic axes shall get some.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(torch.randn(3, 4),))
        >>> [node.op for node in as_graph(prepared).graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'call_module', 'call_module', 'output']
    """
    if isinstance(prepared, fx.GraphModule):
        if axes and not asked_axes(prepared):
            raise ValueError(
                "a graph that was made without dynamic axes cannot get any; give the prepared module itself."
            )
        return prepared
    require_whole(prepared, "An int8 model")
    state, instrument = state_of(prepared), instrument_of(prepared)
    assert instrument is not None
    plan = plan_of(prepared)
    sites = plan.sites
    assert sites is not None
    if example is None:
        example = first_call_of(prepared)
        example = example and ReadArguments(prepared)(*example)
    if example is None:
        raise ValueError(
            f"{type(prepared).__name__} has not been called since it was prepared, and without inputs it cannot be "
            "turned into a graph. Call it once, or give lq.prepare(..., example_args=(x,)) an example."
        )
    layers = [
        LayerSite(layer.name, layer.spec, layer.norm is not None, _learned_scale(state, layer))
        for layer in sites.layers
    ]
    quantizers = [cast(FakeQuantize, state.get_submodule(name)) for name in sites.names]
    given, part = like(prepared, example), _first_with_work(plan)
    inner = f"{name}.{part}" if name and part else part
    graph = capture(prepared, state, quantizers, layers, given, lambda: _marking(prepared, instrument), inner, axes)
    _share_counters(graph, prepared, sites.layers)
    return graph


def _share_counters(graph: fx.GraphModule, prepared: nn.Module, layers: tuple[LayerAt, ...]) -> None:
    """Give the BatchNorms of a graph the counters of the user's; no operation reads them, so that no graph has them."""
    for layer in layers:
        norm = None if layer.norm is None else prepared.get_submodule(layer.norm.place)
        copied = None if layer.norm is None else _submodule(graph, layer.norm.place)
        if isinstance(norm, BatchNorm) and isinstance(copied, BatchNorm):
            copied._buffers["num_batches_tracked"] = norm.num_batches_tracked


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def first_call_of(prepared: nn.Module) -> Inputs | None:
    """The inputs that a module was planned with, or else was first called with; of a checkpoint, zeros like them.

    Returns:
        positional and keyword arguments, on the CPU; ``None`` for a graph, a float module, and one not called yet.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> args, kwargs = first_call_of(prepare(nn.Sequential(nn.Linear(2, 2)), example_args=(torch.ones(2),)))
        >>> args, kwargs
        ((tensor([1., 1.]),), {})
    """
    instrument = instrument_of(prepared)
    if instrument is None:
        return None
    if instrument.example is not None:
        args, kwargs = instrument.example
        return args, kwargs
    inputs = plan_of(prepared).inputs
    return None if inputs is None else made_inputs(inputs)


def _first_with_work(plan: Plan) -> str:
    """The first direct child that does a twentieth of the quantized work, as a detector's backbone; "" if none does."""
    work: Counter[str] = Counter()
    for row in plan.quantized:
        child, dot, _ = row.name.partition(".")
        work[child if dot else ""] += row.work
    return next((name for name, done in work.items() if name and 20 * done >= work.total() > 0), "")


def _learned_scale(state: nn.Module, layer: LayerAt) -> LearnedScale | None:
    return cast(WeightQuantizer, state.get_submodule(layer.quantizer)).learned_scale


@contextmanager
def _marking(prepared: nn.Module, instrument: Instrument) -> Iterator[None]:
    instrument.marking = True
    try:
        with without_later_hooks(prepared, instrument.first_later_hook(prepared)):
            yield
    finally:
        instrument.marking = False
