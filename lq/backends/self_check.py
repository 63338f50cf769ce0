"""The self-check: a prepared module has to compute what the float one does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lq.core.modes import modes_kept
from lq.core.state import STATE, QATState
from lq.metrics.detections import detection_agreement, detections_in
from lq.tracing.chance import CHANCE, depends_on_chance
from lq.tracing.closeness import difference
from lq.tracing.structure import is_record

_ENOUGH_BOXES = 0.9  # of detection_agreement


@torch.no_grad()
def self_check(
    module: nn.Module, prepared: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> None:
    """Compare the prepared module with the float one, in evaluation and with fake quantization off.

    Raises:
        ValueError: if the outputs differ in type or by more than 1e-5 of the largest value, or depend on chance.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> net, args = nn.Sequential(nn.Linear(1, 1)), (torch.ones(1, 1),)
        >>> prepared = prepare(copy.deepcopy(net))
        >>> self_check(net, prepared, args)
        >>> _ = prepared[0].bias.data.add_(1)
        >>> self_check(net, prepared, args)
        Traceback (most recent call last):
            ...
        ValueError: Sequential: float and prepared outputs differ ...
    """
    state = getattr(prepared, STATE)
    assert isinstance(state, QATState)
    flags = (state.fake_quant, state.observer)
    state.fake_quant = state.observer = False
    try:
        with modes_kept(module, prepared):
            expected = module.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs or {})))
            got = prepared.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs or {})))
            _compare_outputs(expected, got, type(module).__name__)
    except ValueError as error:
        with modes_kept(module):
            if depends_on_chance(module.eval(), (args, dict(kwargs or {}))):
                raise ValueError(f"{type(module).__name__}: {CHANCE}.") from error
        raise
    finally:
        state.fake_quant, state.observer = flags


def _becomes_dict(output: Any) -> bool:
    """Whether a graph returns a plain dict in the place of this: mappings of other classes, dataclasses."""
    return isinstance(output, Mapping) or is_record(output)


def _tensors(output: Any, path: str = "") -> dict[str, Any]:
    """All tensors and numbers of an output, by the keys and indices that lead to them."""
    if isinstance(output, Tensor):
        return {path: output}
    if isinstance(output, (int, float)):  # one that depends on the batch size is a tensor in a graph
        return {path: torch.as_tensor(output)}
    items: Iterable[tuple[Any, Any]] = ()
    if is_record(output):
        items = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, (list, tuple)):
        items = enumerate(output)
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _tensors(inner, f"{path}[{key!r}]")
    return found


def _compare_outputs(expected: Any, got: Any, name: str) -> None:
    remedy = (
        "The captured graph computes something else. Exclude the module at fault from the target or report this model."
    )
    if type(expected) is not type(got) and not (isinstance(got, dict) and _becomes_dict(expected)):
        raise ValueError(
            f"{name} returns {type(expected).__name__} but its graph returns {type(got).__name__}. {remedy}"
        )
    found_boxes, got_boxes = detections_in(expected), detections_in(got)
    if found_boxes and got_boxes:  # of those whose scores tie, any may be kept
        agreement = detection_agreement(found_boxes, got_boxes)
        if agreement < _ENOUGH_BOXES:
            raise ValueError(f"{name}: float and prepared detections agree by {agreement:.0%}. {remedy}")
        return
    leaves, got_leaves = _tensors(expected), _tensors(got)
    if list(leaves) != list(got_leaves):
        raise ValueError(
            f"{name} and its graph return different structures: {list(leaves)}, {list(got_leaves)}. {remedy}"
        )
    for path, a in leaves.items():
        found = difference(a, got_leaves[path])
        if found is not None:
            raise ValueError(f"{name}: float and prepared outputs differ {found}. {remedy}")
