"""From the call of a torch function to its site."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lq.compat.torch_private import HigherOrderOperator, is_backward, is_transformed
from lq.core.own_class import own_class
from lq.core.saving import Saving
from lq.instrument.checkpointing import (
    notice_checkpoint,
    refuse_reentrant,
    refuse_reentrant_part,
)
from lq.instrument.hooks import is_called_by
from lq.instrument.places import LISTENERS, PLACE, Call, Instrument, Place, Row, kept_example
from lq.instrument.sites import Site, run_site
from lq.tracing.opened import EXPORTED, OPENABLE, OPENED, number_of_steps, step_by_step

Body = Callable[..., Any]


class _SiteMode(TorchFunctionMode):
    """Sees every call of a torch function, and lets that happen which the place that makes it has a site for."""

    def __init__(self, instrument: Instrument, call: Call) -> None:
        super().__init__()
        self.instrument, self.call = instrument, call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self.call
        place = call.place
        row = None if place is None or call.busy else place.rows.get(func)
        if row is None or (call.hooks and is_called_by(call.hooks, _inside_call.__code__)):
            return self._without_site(func, args, kwargs or {})
        assert place is not None
        if call.grad and not torch.is_grad_enabled():
            refuse_reentrant(place, f"{row.name}() itself")
        if not place.is_plain_leaf:  # those have looked when they were called
            notice_checkpoint(self.instrument, call, _SiteMode)
        site = _next(self.instrument, call, place, row)
        if site is None:
            return func(*args, **(kwargs or {}))
        call.busy = True  # against a mode that sees its own calls
        try:
            return run_site(self.instrument, call, place, site, func, args, kwargs or {})
        finally:
            call.busy = False

    def _without_site(self, func: Any, args: Any, kwargs: Any) -> Any:
        opened = OPENED.get(func) if func not in OPENABLE else self._opened(func, args)
        if opened is not None:
            with self:
                return opened(*args, **kwargs)
        if self.instrument.marking and func in EXPORTED:  # one call, as it was planned: nothing inside is a site
            return EXPORTED[func](*args, **kwargs)
        if isinstance(func, HigherOrderOperator):
            args = tuple(self._inside(arg) for arg in args)
        return func(*args, **kwargs)

    def _opened(self, func: Any, args: Any) -> Body | None:
        place = self.call.place
        if place is None or OPENABLE[func] not in place.opened:
            return None
        found = step_by_step(func, args)
        planned, steps = place.opened[OPENABLE[func]], 0 if found is None else number_of_steps(func, args)
        if found is not None and steps not in planned:
            raise ValueError(
                f"{place.path or 'The target'} was planned for sequences of {min(planned)} steps, and got {steps}. "
                "Pad or cut all to one length, or leave it to float: QConfig(recurrence='float')."
            )
        return found

    def _inside(self, arg: Any) -> Any:
        """The body of an operation such as ``torch.cond`` or a compiled checkpoint, which runs without modes."""
        if not callable(arg) or isinstance(arg, (torch.Tensor, type)):
            return arg

        def body(*args: Any, **kwargs: Any) -> Any:
            with _SiteMode(self.instrument, self.call):
                return arg(*args, **kwargs)

        return body


def _next(instrument: Instrument, call: Call, place: Place, row: Row) -> Site | None:
    nth = call.counts.get(row.number, 0)
    call.counts[row.number] = nth + 1
    if row.in_training is not None and place.module.training:
        planned = row.in_training.get(nth)
        if planned is None:
            return None
        nth = planned
    if torch.compiler.is_compiling() and not instrument.marking:  # what an activation stands behind cannot be seen
        return row.sites[nth] if nth < len(row.sites) else None
    if nth < len(row.sites):
        return row.sites[nth] or row.left_alone
    if row.unknown is None and not instrument.marking:
        instrument.unplanned[f"{place.path}.{row.name}".lstrip(".")] += 1
    return row.unknown


def run_place(place: Place, module: nn.Module, body: Body, args: Any, kwargs: Any) -> Any:
    """Run the ``forward`` of a module of the target, with its sites, and let listeners hear of it.

    Args:
        place: of the module.
        module: the module.
        body: the user's ``forward``, which takes the module first.
        args: positional inputs.
        kwargs: keyword inputs.

    Returns:
        what ``body`` returns.

    Example:
        >>> from lq.instrument.classes import place_of
        >>> from lq.instrument.listen import Listener
        >>> net = nn.ReLU()
        >>> listener = Listener(net, before=lambda args, kwargs, _: print("called with", *args))
        >>> run_place(place_of(net), net, nn.ReLU.forward, (torch.tensor([-1.0]),), {})
        called with tensor([-1.])
        tensor([0.])
    """
    instrument = place.instrument
    listeners = module.__dict__.get(LISTENERS)
    if not listeners or instrument.recorder is not None or instrument.marking or instrument.rehearsing:
        return _run(place, module, body, args, kwargs)
    for listener in list(listeners):
        if listener.before is not None:
            listener.before(args, kwargs, None)
    # One of them may have made the plan, and with it another place.
    output = (
        _run(place, module, body, args, kwargs)
        if module.__dict__.get(PLACE) is place
        else _unheard(module, args, kwargs)
    )
    for listener in list(listeners):
        if listener.after is not None:
            listener.after(args, kwargs, output)
    return output


def _unheard(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Call a module through its new place, within a call of which the listeners hear already."""
    listeners = module.__dict__.pop(LISTENERS, None)
    try:
        return module.forward(*args, **kwargs)
    finally:
        if listeners:
            module.__dict__[LISTENERS] = listeners


def _run(place: Place, module: nn.Module, body: Body, args: Any, kwargs: Any) -> Any:
    instrument = place.instrument
    if instrument.recorder is not None:
        return instrument.recorder.run(place, module, body, args, kwargs)
    call = instrument.call()
    outer = call.place
    if outer is None:
        return _begin(instrument, call, place, module, body, args, kwargs)
    if call.hooks and is_called_by(call.hooks, _inside_call.__code__):
        return body(module, *args, **kwargs)
    notice_checkpoint(instrument, call, _SiteMode)
    outer_grad, grad = call.grad, torch.is_grad_enabled()
    if outer_grad and not grad:
        refuse_reentrant_part(outer, place)
    call.place, call.grad = place, grad
    try:
        return _inside_call(instrument, call, place, module, body, args, kwargs)
    finally:
        call.place, call.grad = outer, outer_grad


def _inside_call(
    instrument: Instrument, call: Call, place: Place, module: nn.Module, body: Body, args: Any, kwargs: Any
) -> Any:
    if place.whole is not None:
        plain = partial(body, module)
        site = _next(instrument, call, place, place.whole)
        return plain(*args, **kwargs) if site is None else run_site(instrument, call, place, site, plain, args, kwargs)
    if call.in_mode:
        return body(module, *args, **kwargs)
    call.in_mode = True
    try:
        with _SiteMode(instrument, call):
            return body(module, *args, **kwargs)
    finally:
        call.in_mode = False


def _begin(
    instrument: Instrument, call: Call, place: Place, module: nn.Module, body: Body, args: Any, kwargs: Any
) -> Any:
    """The target is called, or a part of it alone: by the user, or because a checkpointed block is computed again."""
    state = instrument.state
    if state is None:  # somebody listens to a float module
        return body(module, *args, **kwargs)
    if instrument.deferred is not None:
        instrument.deferred(module, (args, kwargs))
        return _unheard(module, args, kwargs)
    observing = state.training and state.observer  # evaluation does not ask for the phase
    if place.is_root and instrument.example is None and not instrument.marking and not torch.compiler.is_compiling():
        instrument.example = kept_example(args, kwargs)
    if not (state.fake_quant or observing or instrument.marking or instrument.rehearsing):
        return body(module, *args, **kwargs)
    if state.fake_quant and not instrument.marking and not torch.compiler.is_compiling():
        _check_gradients(module)
    call.start()
    call.given = args, kwargs
    if not instrument.marking and not torch.compiler.is_compiling():  # an export runs without such hooks
        call.hooks = instrument.later_hooks(module)
    call.place, call.outermost, call.grad = place, place, torch.is_grad_enabled()
    call.recomputing = not torch.compiler.is_compiling() and is_backward()
    pinned = state.pinned
    if call.recomputing:
        state.pinned = pinned or state.before_step
    try:
        with _saving(instrument, call):
            output = _inside_call(instrument, call, place, module, body, args, kwargs)
        _check_all_norms_ran(instrument, call)
        if place.is_root and not call.recomputing and not instrument.rehearsing:
            state.end_of_call()
        return output
    finally:
        state.pinned = pinned
        call.place, call.outermost, call.grad, call.recomputing = None, None, False, False
        call.start()


def _check_gradients(module: nn.Module) -> None:
    """Refuse the gradients of torch.func, whose tensors the functions that round do not take.

    Raises:
        RuntimeError: if they are asked for.
    """
    if torch.is_grad_enabled() and is_transformed():
        raise RuntimeError(
            f"{own_class(module).__name__} is fake-quantized, and torch.func (grad, vmap, jvp and the like) cannot go "
            "through that. Take gradients with torch.autograd.grad, with create_graph=True for gradients of gradients."
        )


def _saving(instrument: Instrument, call: Call) -> AbstractContextManager[Any]:
    """Around a call of which autograd shall save bytes, unless torch.compile decides what is saved."""
    state = instrument.state
    assert state is not None
    if not (state.saves_bytes and state.fake_quant and call.grad) or torch.compiler.is_compiling():
        return nullcontext()
    return Saving() if Saving.is_possible() and not call.recomputing else nullcontext()


def _check_all_norms_ran(instrument: Instrument, call: Call) -> None:
    """A layer whose weight held its BatchNorm is wrong if that did not run behind it.

    Raises:
        RuntimeError: naming the call.
    """
    if call.folded and not torch.compiler.is_compiling():
        at = instrument.planned[next(iter(call.folded))]
        raise RuntimeError(
            f"The BatchNorm after {at.place or at.operation} was folded into the layer's weight, but then it did not "
            "run. If it was replaced after lq.prepare, e.g. by SyncBatchNorm.convert_sync_batchnorm, replace it before "
            "lq.prepare. If forward sometimes skips it, exclude the layer: QConfig(exclude=[...])."
        )
