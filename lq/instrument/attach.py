"""From a plan to sites: the target stays the user's object, and notices from now on which calls its modules make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lq.compat.torch_private import BatchNorm
from lq.core.fake_quantize import FakeQuantize
from lq.core.own_class import is_plain_leaf
from lq.core.state import STATE, QATState
from lq.core.weight_quantizer import WeightQuantizer
from lq.instrument.classes import is_instrumented, place_of, swap, unswap
from lq.instrument.hooks import hooks_so_far
from lq.instrument.places import Instrument, Place, Row
from lq.instrument.sites import Site
from lq.tracing.functions import functions_of, is_frozen_batch_norm
from lq.tracing.sites import CallAt, Sites


class _Attaching:
    """One attachment, with what its steps have in common."""

    def __init__(self, target: nn.Module, sites: Sites, state: QATState | None) -> None:
        self.target, self.plan = target, sites
        self.modules = dict(target.named_modules(remove_duplicate=False))
        self.state = state or QATState([], [], [])
        self.training = target.training if state is None else state.training
        if not self.state.names:
            self.state.fill(list(sites.names), list(sites.specs), list(sites.activations))
        self.instrument = Instrument(self.state, sites)
        self.instrument.hooks_before = hooks_so_far()
        self.places: dict[str, Place] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.sites: dict[CallAt, Site] = {}

    def run(self) -> QATState:
        self._make_places()
        for slot, name in enumerate(self.plan.names):
            if name not in self.state._modules:
                self.state.add_module(name, FakeQuantize(self.state, slot))
        self.state.writers = [sum(t.slot == slot for t in self.plan.tensors) for slot in range(len(self.plan.names))]
        for number, layer in enumerate(self.plan.layers):
            self._layer(number, layer)
        for tensor in self.plan.tensors:
            self._tensor(tensor)
        for call in self.plan.fresh:
            self._site(call).fresh = True
        for place, name, count in self.plan.counts:
            if (place, name) in self.rows:
                self.rows[place, name].pad(count)
        for place, name, pairs in self.plan.training:
            if (place, name) in self.rows:
                self.rows[place, name].in_training = dict(pairs)
        self.instrument.planned = {site.index: call for call, site in self.sites.items() if not site.counter}
        for path, operation, steps in self.plan.opened:
            self.places[path].opened.setdefault(operation, set()).add(steps)
        device = next((p.device for p in self.target.parameters()), torch.device("cpu"))
        if device.type not in ("cpu", "meta"):
            self.state.to(device)
        if STATE not in self.target._modules:
            self.target.add_module(STATE, self.state)
        self.state.train(self.training)
        return self.state

    def _make_places(self) -> None:
        made: dict[int, Place] = {}
        for path in self.plan.places:
            module = self.modules.get(path)
            if module is None:
                raise ValueError(
                    f"{type(self.target).__name__} has no module {path!r}, which was quantized when it was prepared "
                    "before; use the architecture of that run."
                )
            if id(module) in made:
                self.places[path] = made[id(module)]
                continue
            place = self.places[path] = made[id(module)] = Place(path, module, self.instrument)
            place.is_root = module is self.target
            place.is_plain_leaf = not place.is_root and is_plain_leaf(module)
            swap(module, place)

    def _site(self, call: CallAt) -> Site:
        if call in self.sites:
            return self.sites[call]
        site = self.sites[call] = Site(len(self.sites), call.operation)
        place = self.places[call.place]
        key = (place.path, call.operation)
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row(len(self.rows), call.operation)
            functions = functions_of(call.operation)
            if call.operation == "batch_norm" and (
                is_frozen_batch_norm(place.module) or isinstance(place.module, nn.SyncBatchNorm)
            ):
                functions = ()
            place.rows.update(dict.fromkeys(functions, row))
            if not functions:  # as of stubs, which call none
                place.whole = row
        row.put(call.nth, site)
        return site

    def _layer(self, number: int, layer: Any) -> None:
        known: Any = self.state._modules.get(layer.quantizer)
        quantizer = known or WeightQuantizer(layer.spec, layer.channel_axis, self._weight(layer))
        if known is None:
            self.state.add_module(layer.quantizer, quantizer)
        site = self._site(layer.call)
        site.layer, site.number = quantizer, number
        if layer.norm is None:
            return
        norm = self._site(layer.norm)
        norm.folds_with, site.apart, site.kept = site.index, layer.apart, layer.kept
        site.norm = self.places[layer.norm.place].module
        site.left = self._modules(layer.left) or (self.places[layer.call.place].module,)
        site.entered = self._modules(layer.entered) or (site.norm,)
        if isinstance(site.norm, BatchNorm) and site.norm.num_batches_tracked is not None:
            self._site(CallAt(layer.norm.place, "add", 0)).counter = True

    def _modules(self, paths: Iterable[str]) -> tuple[nn.Module, ...]:
        return tuple(self.modules[path] for path in paths)

    def _weight(self, layer: Any) -> torch.Tensor | None:
        if not layer.spec.learned_scale:
            return None
        owner, _, name = layer.weight.rpartition(".")
        weight = getattr(self.modules.get(owner), name, None) if layer.weight else None
        if not isinstance(weight, torch.Tensor):
            raise ValueError(
                f"{layer.name}: its weight is computed in forward, and a learned scale belongs to a parameter. Leave "
                f"it out for this one: QConfig(overrides={{{layer.name!r}: LayerQConfig(weight=WeightSpec(...))}})."
            )
        return weight

    def _tensor(self, tensor: Any) -> None:
        quantizer: Any = self.state.get_submodule(self.plan.names[tensor.slot])
        site = self._site(tensor.call)
        if tensor.argument:
            site.inputs = (*site.inputs, (tensor.argument, quantizer, tensor.cloned))
            return
        site.output, site.absorbs, site.owned, site.clones = quantizer, tensor.absorbs, tensor.owned, tensor.cloned
        site.left, site.entered = self._modules(tensor.makers), self._modules(tensor.entered)
        site.returned = tensor.returned
        if tensor.absorbs:
            row = self.rows[self.places[tensor.call.place].path, tensor.call.operation]
            row.left_alone = Site(-1, site.function, absorbs=True)
            row.unknown = Site(-1, site.function, absorbs=True, expects=True)
        if tensor.behind is not None:
            site.expects = True
            self._site(tensor.behind).gives = site


def attach(target: nn.Module, sites: Sites, state: QATState | None = None) -> QATState:
    """Instrument a module in place, as a plan says.

    Args:
        target: the user's module; it keeps its identity, its parameters and all that it can do, and gets a submodule
            ``qat_state``.
        sites: the plan.
        state: that submodule, if the module has it already.

    Returns:
        the state: ranges and phase.

    Raises:
        ValueError: if the module lacks a part that the plan names, or a weight whose scale is to be learned is
            computed; the module is left as it was.

    Example:
        >>> from lq.backends.prepare import plan_of, prepare, state_of
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(torch.ones(1, 4),))
        >>> detach(net)
        >>> attach(net, plan_of(net).sites, state_of(net)).names
        ['fq_input_1', 'fq_0']
    """
    try:
        return _Attaching(target, sites, state).run()
    except Exception:
        detach(target)
        raise


def defer(target: nn.Module, plan: Callable[[nn.Module, Any], None], state: QATState | None = None) -> QATState:
    """Instrument a module at its first call.

    Args:
        target: the user's module.
        plan: is called with it and the inputs of that call, and attaches a plan to it.
        state: its submodule ``qat_state``, if it has one already.

    Returns:
        the state, without ranges until then.

    Example:
        >>> def plan(module, inputs):
        ...     print("its first inputs are", inputs)
        ...     detach(module)  # in the place of attaching a plan
        >>> net = nn.ReLU()
        >>> _ = defer(net, plan)
        >>> net(torch.ones(1))
        its first inputs are ((tensor([1.]),), {})
        tensor([1.])
    """
    state = state or QATState([], [], [])
    instrument = Instrument(state)
    instrument.deferred = plan
    place = Place("", target, instrument)
    place.is_root = True
    swap(target, place)
    target._modules[STATE] = state
    state.train(target.training)
    return state


def detach(target: nn.Module) -> None:
    """Give every part of an instrumented module its own class back; ``qat_state`` stays.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(torch.ones(1, 4),))
        >>> type(net) is nn.Sequential
        False
        >>> detach(net)
        >>> type(net) is nn.Sequential, [name for name, _ in net.named_children()]
        (True, ['0', 'qat_state'])
    """
    for module in target.modules():
        if is_instrumented(module):
            unswap(module)


def instrument_of(target: nn.Module) -> Instrument | None:
    """What an instrumented module has in common with its parts; ``None`` if it is none.

    Example:
        >>> instrument_of(nn.ReLU()) is None
        True
    """
    place = place_of(target)
    return None if place is None or not place.is_root else place.instrument


def attach_as_before(target: nn.Module, instrument: Instrument) -> None:
    """Instrument a module once more, as it was before :func:`detach`: with the same state, plan and known hooks.

    Args:
        target: the user's module.
        instrument: what :func:`instrument_of` gave of it then.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> before = instrument_of(net)
        >>> detach(net)
        >>> attach_as_before(net, before)
        >>> instrument_of(net).state is before.state
        True
    """
    if instrument.deferred is not None:
        defer(target, instrument.deferred, instrument.state)
        return
    attach(target, instrument.sites, instrument.state)
    found = instrument_of(target)
    assert found is not None
    found.example, found.hooks_before = instrument.example, instrument.hooks_before


def attach_again(target: nn.Module) -> dict[str, str]:
    """Take in modules that have been exchanged since, as Lightning exchanges BatchNorms by SyncBatchNorms.

    Returns:
        dotted names of the modules that are new, and their classes.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> net = prepare(net, example_args=(torch.ones(1, 1, 8, 8),))
        >>> net[1] = nn.SyncBatchNorm(2)
        >>> attach_again(net), attach_again(net)
        ({'1': 'SyncBatchNorm'}, {})
    """
    instrument = instrument_of(target)
    if instrument is None or instrument.sites is None:
        return {}
    modules = {path: target.get_submodule(path) for path in instrument.sites.places}
    new = {path: type(module).__name__ for path, module in modules.items() if not is_instrumented(module)}
    if new:
        detach(target)
        attach_as_before(target, instrument)
    return new
