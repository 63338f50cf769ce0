"""Ranges of activations from a few batches, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import nn

from lq.backends.prepare import set_phase, state_of
from lq.checks import check_integer, shown
from lq.console import BatchCounter
from lq.core.state import QATState
from lq.ptq.batches import RunBatch, check_batches, first_batches, run_batch


def calibrate(
    prepared: nn.Module,
    batches: Iterable[Any],
    call: RunBatch | None = None,
    limit: int = 100,
    *,
    show_progress: bool = True,
) -> int:
    """Find the ranges of a prepared module by running batches, in evaluation mode; then switch fake quantization on.

    Args:
        prepared: from :func:`lq.prepare`.
        batches: data, e.g. a DataLoader.
        call: how to run one batch, ``call(prepared, batch)``; by default as in
            :func:`~lq.ptq.batches.call_of_batch`: the first element of ``(x, y)`` is the input.
        limit: batches to use; about 100 calibrate a model (Krishnamoorthi, arXiv:1806.08342).
        show_progress: whether to show how far it is.

    Returns:
        number of batches used.

    Raises:
        ValueError: if there was no batch, a batch held no tensor, an activation was NaN or infinite, or no observer
            saw anything.

    Warns:
        UserWarning: if some observers saw nothing; what they stand for stays float.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> calibrate(prepared, [torch.randn(8, 4) for _ in range(3)])
        3
    """
    if call is not None and not callable(call):
        raise TypeError(
            f"calibrate(): call={shown(call)} is not a function; write e.g. lambda model, batch: model(batch['x'])."
        )
    check_batches(batches, "calibrate()")
    check_integer("limit", limit, 100)
    state = state_of(prepared)
    bad_before = state.nonfinite.tolist()
    prepared.eval()
    state.train()
    set_phase(prepared, fake_quant=False, observer=True, freeze_bn=True)
    used = 0
    total = min(limit, len(batches)) if isinstance(batches, Sized) else limit
    try:
        with torch.no_grad(), BatchCounter("lq: calibrating", total, shown=show_progress) as counter:
            for batch in first_batches(batches, limit, "calibrate()"):
                (call or run_batch)(prepared, batch)
                used += 1
                counter.advance()
    finally:
        prepared.eval()
        set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    bad_before = bad_before or [0] * len(state.names)  # it was planned just now
    _check_finite(state, [now - then for now, then in zip(state.nonfinite.tolist(), bad_before, strict=True)], used)
    _check_seen(state)
    return used


def _check_finite(state: QATState, bad: list[int], used: int) -> None:
    found = [f"{name} ({count} of {used})" for name, count in zip(state.names, bad, strict=True) if count]
    if found:
        raise ValueError(
            f"calibrate() met NaN or infinity in {len(found)} of {len(bad)} tensors, first in {found[0]} batches. "
            "Look for it in the data (torch.isfinite(x).all()) or in the weights; such batches have no range."
        )


def _check_seen(state: QATState) -> None:
    unseen = [name for slot, name in enumerate(state.names) if not state.ready(slot)]
    if state.names and len(unseen) == len(state.names):
        raise ValueError(
            "calibrate() ran its batches, but no observer saw a tensor: call= has to call the prepared module itself, "
            "e.g. call=lambda prepared, batch: prepared(batch['image']), and the batches have to hold samples."
        )
    if unseen:
        warnings.warn(
            f"lq: {len(unseen)} of {len(state.names)} observers saw no tensor in calibration, e.g. {unseen[0]}; "
            "these tensors stay in float. Does forward use these parts in evaluation mode?",
            stacklevel=3,
        )
