"""One call of a module with real inputs, recorded; the module is afterwards as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lq.core.modes import modes_kept
from lq.instrument.classes import place_of, swap, unswap
from lq.instrument.places import Instrument, Place
from lq.tracing.inputs import named_arguments
from lq.tracing.recording import Recorder


@dataclass(frozen=True)
class Recording:
    """What a call did.

    Args:
        evaluation: in evaluation mode.
        training: in training mode; ``None`` if the module cannot be called with these inputs there.
        output: what it returned in evaluation.
    """

    evaluation: Recorder
    training: Recorder | None
    output: Any


def record(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recording:
    """Call a module once in evaluation and once in training, and note which functions it calls.

    Args:
        root: the module; parameters, buffers, modes, plain attributes and random states stay what they were.
        args: positional inputs of one call.
        kwargs: keyword inputs.

    Returns:
        both recordings.

    Raises:
        Exception: what the module raises in evaluation.

    Example:
        >>> recording = record(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.zeros(1, 4),), {})
        >>> [seen.operation for seen, _ in recording.evaluation.calls]
        ['linear', 'relu']
    """
    initialize_lazy(root, args, kwargs)
    with as_it_was(root), modes_kept(root):
        evaluation, output = _record(root.eval(), args, kwargs)
    training: Recorder | None = None
    with as_it_was(root), modes_kept(root):
        try:
            training, _ = _record(root.train(), args, kwargs)
        except Exception:  # detectors want targets, BatchNorm more than one sample: what is not seen is counted later
            training = None
    return Recording(evaluation, training, output)


def initialize_lazy(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a module that has lazy layers, which have their weights and their classes only then."""
    if any(is_lazy(tensor) for tensor in [*root.parameters(), *root.buffers()]):
        with torch.no_grad(), modes_kept(root):
            root.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))


def _record(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Recorder, Any]:
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    recorder, instrument = Recorder(root), Instrument()
    recorder.take_inputs(named_arguments(root, args, kwargs))
    swapped: list[nn.Module] = []
    try:
        for path, module in root.named_modules():
            if is_open(path, module):
                swap(module, Place(path, module, instrument))
                swapped.append(module)
        instrument.recorder = recorder
        with torch.no_grad(), recorder:
            output = root(*args, **kwargs)
    finally:
        for module in swapped:
            unswap(module)
    recorder.give_output(output)
    return recorder, output


def is_open(path: str, module: nn.Module) -> bool:
    """Whether the calls that a module's ``forward`` makes can be seen: TorchScript's cannot."""
    script = isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction))
    return not script and "parametrizations" not in path.split(".") and place_of(module) is None


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@contextmanager
def as_it_was(root: nn.Module) -> Iterator[None]:
    """Within the block a module may run; afterwards its buffers, its own attributes and random states are restored."""
    tensors = [(t, t.detach().clone()) for t in [*root.buffers()] if not t.is_meta]
    attributes = [(module, _attributes(module)) for module in root.modules()]
    python, devices = random.getstate(), sorted({t.device.index for t in root.parameters() if t.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        for module, kept in attributes:
            _restore(module, kept)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    kept = {}
    for name, value in module.__dict__.items():
        kept[name] = (value, copy.copy(value) if type(value) in (list, dict, set) else None)
    return kept


def _restore(module: nn.Module, kept: dict[str, Any]) -> None:
    for name in set(module.__dict__) - set(kept):
        del module.__dict__[name]
    for name, (value, content) in kept.items():
        module.__dict__[name] = value
        if content is None or content == value if not _holds_tensors(content) else False:
            continue
        value.clear()
        value.extend(content) if isinstance(value, list) else value.update(content)


def _holds_tensors(content: Any) -> bool:
    values = content.values() if isinstance(content, dict) else content or ()
    return any(isinstance(value, Tensor) for value in values)
