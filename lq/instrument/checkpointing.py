"""What ``torch.utils.checkpoint`` computes again: with the sites, counters and ranges of the first time.

It runs in the backward pass, outside of the call of the target. Whatever of ours runs first within a checkpointed part
looks for the frame that the checkpoint keeps, and wraps what it will compute again; there is no public way to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from lq.compat.torch_private import innermost_saved_tensors_hooks
from lq.instrument.places import Call, Instrument, Place


class _Again:
    """A recomputation, with the call as it was when the checkpointed part began."""

    def __init__(self, recompute: Callable[..., Any], instrument: Instrument, call: Call, enter: Any) -> None:
        self.recompute, self.instrument, self.call, self.enter = recompute, instrument, call, enter
        self.place, self.counts, self.folded, self.hooks = call.place, dict(call.counts), set(call.folded), call.hooks
        state = instrument.state
        assert state is not None
        self.state, self.ranges = state, state.pin()

    def __call__(self, *args: Any) -> Any:
        call = Call()
        call.place, call.counts, call.folded = self.place, dict(self.counts), set(self.folded)
        call.recomputing = call.in_mode = True
        call.given, call.hooks = args, self.hooks
        # A GPU's backward pass has a thread of its own.
        former = self.instrument.use(call)
        before = self.state.pinned
        self.state.pinned = self.ranges
        try:
            with self.enter(self.instrument, call):
                return self.recompute(*args)
        finally:
            self.state.pinned = before
            self.instrument.leave(former)


def refuse_reentrant(place: Place, what: str) -> None:
    """Refuse a reentrant checkpoint of which only parts would be seen again.

    What is called in the backward pass is the function that was checkpointed, under no call of the target. A module
    that it calls notices that; what the function computes by itself, or across modules, would silently be float.

    Args:
        place: the module in whose ``forward`` the function was written.
        what: it calls.

    Raises:
        ValueError: if this runs in the first pass of such a checkpoint.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> place = Place("block", torch.nn.ReLU(), Instrument())
        >>> def part(x):
        ...     refuse_reentrant(place, "linear()")
        ...     return x
        >>> x = torch.ones(1, requires_grad=True)
        >>> checkpoint(part, x, use_reentrant=False) is x
        True
        >>> checkpoint(part, x, use_reentrant=True)
        Traceback (most recent call last):
        ValueError: torch.utils.checkpoint(..., use_reentrant=True) in block: the checkpointed function ...
    """
    frame: Any = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise ValueError(
                f"torch.utils.checkpoint(..., use_reentrant=True) in {place.path or 'the target'}: the "
                f"checkpointed function itself calls {what}. When it runs again in the backward pass, lq cannot tell "
                "which call that is. Write use_reentrant=False, or checkpoint a module: checkpoint(self.block, x, ...)."
            )
        frame = frame.f_back


def refuse_reentrant_part(outer: Place, place: Place) -> None:
    """The same, where the function calls a module that is one with what comes before it.

    Args:
        outer: the module in whose ``forward`` the function was written.
        place: the module that is called.

    Raises:
        ValueError: as :func:`refuse_reentrant` does.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.classes import place_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> target, _, relu = map(place_of, [prepare(net, example_args=(torch.ones(1, 4),)), *net])
        >>> part = lambda x: refuse_reentrant_part(target, relu)  # the layer before the ReLU is not in the part
        >>> checkpoint(part, torch.ones(1, requires_grad=True), use_reentrant=True)
        Traceback (most recent call last):
        ValueError: torch.utils.checkpoint(..., use_reentrant=True) in the target: the checkpointed ...
    """
    if any(site.expects or site.folds_with is not None for site in place.sites()):
        refuse_reentrant(outer, place.path)


def notice_checkpoint(instrument: Instrument, call: Call, enter: Any) -> None:
    """If this runs within a checkpointed part, let its recomputation know of the present call, and the call of that.

    Args:
        instrument: of the target.
        call: the running one.
        enter: makes the mode that the recomputation runs under.

    Example:
        >>> from contextlib import nullcontext
        >>> from torch.utils.checkpoint import checkpoint
        >>> from lq.core.state import QATState
        >>> instrument, call = Instrument(QATState([], [], [])), Call()
        >>> def part(x):
        ...     notice_checkpoint(instrument, call, lambda *_: nullcontext(print("computed again")))
        ...     return x.exp()
        >>> y = checkpoint(part, torch.ones(1, requires_grad=True), use_reentrant=False)
        >>> call.checkpointed
        True
        >>> y.backward()
        computed again
    """
    if torch.compiler.is_compiling():
        return
    hooks = innermost_saved_tensors_hooks(False)
    call.checkpointed = False
    if hooks is None:
        return
    for cell in getattr(hooks[0], "__closure__", None) or ():
        frame = cell.cell_contents
        recompute = getattr(frame, "recompute_fn", None)
        call.checkpointed = call.checkpointed or recompute is not None
        if recompute is not None and not isinstance(recompute, _Again):
            frame.recompute_fn = _Again(recompute, instrument, call, enter)
