"""The default way to prepare: the user's module is recorded, planned and instrumented where it stands."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from lq.backends.base import Inputs
from lq.backends.planning import in_module_order, nothing_to_quantize
from lq.core.modes import modes_kept
from lq.core.own_class import own_class
from lq.core.state import QATState
from lq.instrument.attach import attach, defer, detach, instrument_of
from lq.instrument.containers import STATE
from lq.instrument.places import Instrument
from lq.instrument.planning import Calls, SitePlanner
from lq.instrument.record import Recording, as_it_was, record
from lq.qconfig import QConfig
from lq.tracing import ops
from lq.tracing.inputs import describe_inputs
from lq.tracing.layers import LAYERS, LayerFinder, seen_of
from lq.tracing.place import Placement
from lq.tracing.plan import LayerPlan, Plan, ProductPlan
from lq.tracing.sites import Sites, in_place_joins
from lq.tracing.symbolic import NotPlainError, read_calls

_TOLERANCE = 1e-5
_QUIET = frozenset(
    {
        "sub", "div", "pow", "neg", "exp", "rsqrt", "sqrt", "arange", "zeros", "ones", "full", "to", "type_as", "float",
        "expand", "masked_fill", "eq", "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "cumsum", "stack",
        "tensor", "empty", "where", "new_zeros", "new_ones", "zeros_like", "ones_like", "bitwise_and", "tril", "triu",
        "meshgrid", "bool", "long", "int", "size", "item", "clamp", "embedding", "setitem", "copy", "fill", "zero",
    }
)  # fmt: skip


def prepare_in_place(module: nn.Module, qconfig: QConfig, example: Inputs) -> QATState:
    """Record one call of a module, plan from it, and instrument the module.

    Args:
        module: a float module.
        qconfig: what to quantize and how.
        example: inputs of one call.

    Returns:
        the state, which holds the plan.

    Raises:
        ValueError: if the example does not fit, no layer can be quantized, or a pattern matches nothing.
    """
    _check_not_scripted(module)
    return _prepare(module, qconfig, example)


def _prepare(module: nn.Module, qconfig: QConfig, example: Inputs, state: QATState | None = None) -> QATState:
    recording = _recorded(module, example)
    recorder = recording.evaluation
    training = recording.training.calls if recording.training is not None else []
    sites, plan = plan_calls(module, qconfig, recorder.graph, recorder.calls, training, recorder.unknown)
    state = attach(module, sites, state)
    if not _rehearse(module, recording, example) and sites.fresh:
        sites = in_place_joins(sites)
        detach(module)
        attach(module, sites, state)
        if not _rehearse(module, recording, example):
            raise ValueError(
                f"{type(module).__name__} computes something else when its tensors are copied: code in it writes into "
                "a tensor that it reads elsewhere under another name. Exclude the part at fault, "
                "QConfig(exclude=[...]), or write x = x + y in the place of x += y there."
            )
    state.plan, state.qconfig = replace(plan, sites=sites, inputs=describe_inputs(example)), qconfig
    _instrument(module).example = example
    return state


def _instrument(module: nn.Module) -> Instrument:
    found = instrument_of(module)
    assert found is not None
    return found


def prepare_without_inputs(module: nn.Module, qconfig: QConfig) -> QATState:
    """Plan from the code of a module, or, where that does not say enough, at its first call.

    Args:
        module: a float module.
        qconfig: what to quantize and how.

    Returns:
        the state; without a plan as long as the module has not been called.

    Raises:
        ValueError: if no layer can be quantized, a pattern matches nothing, or scales are to be learned, which an
            optimizer has to know before the first call.
    """
    _check_not_scripted(module)
    if not _is_lazy(module):
        try:
            graph, calls = read_calls(module)
        except NotPlainError:
            pass
        else:
            sites, plan = plan_calls(module, qconfig, graph, calls, [], [])
            state = attach(module, sites)
            state.plan, state.qconfig = plan, qconfig
            return state
    if qconfig.learns_scales:
        raise ValueError(
            f"What {type(module).__name__} computes cannot be read off its code, so it is planned at its first call, "
            "but an optimizer has to know learned scales before. Give lq.prepare(..., example_args=(x,))."
        )
    state = defer(module, partial(_plan_at_first_call, qconfig))
    state.qconfig = qconfig
    return state


def plan_at_once(module: nn.Module, example: Inputs) -> None:
    """Plan a prepared module that waits for its first call; one that has a plan stays as it is.

    Args:
        module: from :func:`lq.prepare`.
        example: inputs of one call, in any place.
    """
    instrument = instrument_of(module)
    if instrument is not None and instrument.deferred is not None:
        instrument.deferred(module, like(module, example))


def like(module: nn.Module, example: Inputs) -> Inputs:
    """Inputs on the module's device, floating tensors in its dtype."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return example

    def moved(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to(parameter.device)
        return tensor.to(parameter.dtype) if tensor.is_floating_point() else tensor

    found: Inputs = tree_map_only(Tensor, moved, example)
    return found


def _plan_at_first_call(qconfig: QConfig, module: nn.Module, example: Inputs) -> None:
    state = module.get_submodule(STATE)
    assert isinstance(state, QATState)
    detach(module)
    _prepare(module, qconfig, example, state)


def _is_lazy(module: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in [*module.parameters(), *module.buffers()])


def _check_not_scripted(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{type(module).__name__} was compiled by torch.jit, so nobody sees which layers it calls. Give the module "
            "that it was compiled from, and script or trace the result when it is trained."
        )


def _recorded(module: nn.Module, example: Inputs) -> Recording:
    try:
        return record(module, *example)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be called with the example: {type(error).__name__}: {error}. Give "
            "inputs as it is called with in evaluation."
        ) from error


def plan_calls(
    module: nn.Module,
    qconfig: QConfig,
    graph: fx.Graph,
    calls: Calls,
    training: Calls,
    unknown: list[str],
) -> tuple[Sites, Plan]:
    """Decide what of a recorded call is quantized.

    Args:
        module: that was called.
        qconfig: what is wanted.
        graph: of the call.
        calls: all calls of functions, in evaluation.
        training: the same in training; empty if unknown.
        unknown: lines that read tensors of which nobody saw how they were made.

    Returns:
        where to quantize, and the plan that people read.

    Raises:
        ValueError: if no layer can be quantized or a pattern matches nothing.
    """
    finder = LayerFinder(graph, module, qconfig)
    layers, floats = finder.find()
    floats += finder.others({layer.name for layer in layers} | {row.name for row in floats})
    placement = Placement(graph, {}, layers, fuse_add=qconfig.resolved_fuse_add)
    planner = SitePlanner(module, calls, layers, placement.sites(), qconfig, training)
    named = {name: m for name, m in module.named_modules() if name}
    qconfig.check_patterns(
        dict.fromkeys(planner.labels(), nn.Identity()) | named | {layer.name: layer.module for layer in layers}
    )
    if not layers:
        raise ValueError(nothing_to_quantize(module, floats, {}))
    sites, rows, tensors = planner.sites()
    work = _Work(graph, planner, finder.names)
    plan = Plan(
        own_class(module).__name__,
        qconfig.title,
        tuple(work.filled(row) for row in in_module_order(module, rows + floats)),
        tensors,
        _float_operations(graph, planner),
        remarks=_remarks(unknown),
        sites=sites,
        products=work.products(),
        modules=architecture(module),
    )
    return sites, plan


def architecture(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Dotted name and class of every part of a module.

    Example:
        >>> architecture(nn.Sequential(nn.ReLU()))
        (('', 'Sequential'), ('0', 'ReLU'))
    """
    parts = module.named_modules(remove_duplicate=False)
    return tuple((name, own_class(part).__name__) for name, part in parts if not f"{name}.".startswith(f"{STATE}."))


class _Work:
    """Multiply-accumulates of layers and of products of matrices, and the lines that compute them."""

    def __init__(self, graph: fx.Graph, planner: SitePlanner, names: Mapping[fx.Node, str]) -> None:
        self.layers: dict[str, tuple[int, str]] = {}
        self.others: list[ProductPlan] = []
        for node in graph.nodes:
            if ops.SEEN not in node.meta:
                continue
            seen = seen_of(node)
            if ops.recorded(node) in LAYERS:
                name = names[node]
                before = self.layers.get(name, (0, seen.line))[0]
                self.layers[name] = (before + seen.work, seen.line)
            elif seen.work and not node.meta.get("constant"):
                reason = "a product of two activations computes in float"
                self.others.append(ProductPlan(planner.label(node), seen.operation, seen.work, seen.line, reason))

    def filled(self, row: LayerPlan) -> LayerPlan:
        work, line = self.layers.get(row.name, (0, ""))
        return replace(row, work=work, line=line)

    def products(self) -> tuple[ProductPlan, ...]:
        return tuple(self.others)


def _remarks(unknown: list[str]) -> tuple[str, ...]:
    if not unknown:
        return ()
    lines = ", ".join(dict.fromkeys(unknown))
    return (
        f"{len(unknown)} tensors come from code that PyTorch does not show (numpy, TorchScript, a constant): {lines}; "
        "what is computed there stays as it is",
    )


def _float_operations(graph: fx.Graph, planner: SitePlanner) -> tuple[str, ...]:
    roundings = planner.roundings
    joins = {r.source for r in roundings if r.owned and ops.joined_tensors(r.source)}
    absorbed = {r.node for r in roundings if r.node is not r.source}
    int8 = {n for layer in planner.layers for n in (layer.node, layer.bn)} | joins | absorbed
    found = []
    for node in graph.nodes:
        operation = ops.recorded(node)
        if not operation or node.meta.get("constant") or node in int8 or operation in _QUIET:
            continue
        if not ops.is_same_grid(node, {}) and not ops.relu_kind(node, {}):
            found.append(planner.label(node))
    return tuple(found)


# ---- the rehearsal --------------------------------------------------------------------------------------------------


def _rehearse(module: nn.Module, recording: Recording, example: Inputs) -> bool:
    """Run with all sites and nothing rounded: whether the module computes what it did.

    Raises:
        ValueError: if it calls other functions than before.
    """
    instrument = _instrument(module)
    instrument.ran.clear()
    instrument.rehearsing = True
    try:
        with as_it_was(module), modes_kept(module), torch.no_grad():
            module.eval()
            args, kwargs = copy.deepcopy(example)
            output = module(*args, **kwargs)
    finally:
        instrument.rehearsing = False
    missing = [call for i, call in enumerate(instrument.calls) if i not in instrument.ran and not _counts(call)]
    if missing:
        raise ValueError(
            f"{type(module).__name__} calls other functions the second time: {missing[0]} did not run again. A module "
            "whose calls change at random in evaluation cannot be planned."
        )
    instrument.ran.clear()
    instrument.unplanned.clear()
    return _same(recording.output, output)


def _counts(call: Any) -> bool:
    """Whether it is the call by which a BatchNorm counts batches, which it does in training only."""
    return bool(call.operation == "add")


def _same(expected: Any, got: Any) -> bool:
    pairs = zip(tree_leaves(expected), tree_leaves(got), strict=False)
    return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or not a.numel():
        return True
    limit = _TOLERANCE * max(1.0, float(a.abs().max()))
    return bool(torch.isnan(a).any()) or float((a.float() - b.float()).abs().max()) <= limit
