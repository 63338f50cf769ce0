"""One call of a module with real inputs, recorded; the module is afterwards as it was."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lq.checks import shown
from lq.core.kept import as_it_was
from lq.core.modes import modes_kept
from lq.instrument.classes import is_instrumented, swap, unswap
from lq.instrument.places import Instrument, Place
from lq.tracing.inputs import named_arguments
from lq.tracing.recording import Opens, Recorder


@dataclass(frozen=True)
class Recording:
    """What a call did.

    Args:
        evaluation: in evaluation mode.
        training: in training mode; ``None`` if the module cannot be called with these inputs there.
        output: what it returned in evaluation.

    Example:
        >>> recording = record(nn.Sequential(nn.Dropout(), nn.ReLU()), (torch.tensor([-1.0, 2.0]),), {})
        >>> recording.output, [seen.operation for seen, _ in recording.training.calls]
        (tensor([0., 2.]), ['dropout', 'relu'])
    """

    evaluation: Recorder
    training: Recorder | None
    output: Any


def record(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    stubs: bool = False,
    opens: Opens | None = None,
) -> Recording:
    """Call a module once in evaluation and once in training, and note which functions it calls.

    Args:
        root: the module; parameters, buffers, modes, plain attributes and random states stay what they were.
        args: positional inputs of one call.
        kwargs: keyword inputs.
        stubs: whether to note the stubs and FloatFunctionals of a model that is annotated by hand.
        opens: whether to note the steps of an operation in the module of a dotted name, if that is possible.

    Returns:
        both recordings.

    Raises:
        ValueError: if the module makes layers in this call.
        Exception: what the module raises in evaluation.

    Example:
        >>> recording = record(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.zeros(1, 4),), {})
        >>> [seen.operation for seen, _ in recording.evaluation.calls]
        ['linear', 'relu']
    """
    initialize_lazy(root, args, kwargs)
    known = dict(root.named_parameters()).keys()
    with as_it_was(root):
        evaluation, output = _record(root.eval(), args, kwargs, Recorder(root, stubs, opens))
        _check_made_nothing(root, known)
    training: Recorder | None = None
    with as_it_was(root):
        try:
            training, _ = _record(root.train(), args, kwargs, Recorder(root, stubs, opens))
        except Exception:  # detectors want targets, BatchNorm more than one sample: what is not seen is counted later
            training = None
    return Recording(evaluation, training, output)


def _check_made_nothing(module: nn.Module, known: Collection[str]) -> None:
    """Refuse a module that has more parameters after a call than before it, which are ``known`` by name."""
    made = sorted(dict(module.named_parameters()).keys() - known)
    if made:
        raise ValueError(
            f"{type(module).__name__} makes {shown(made)} in its first forward; that is later than the optimizers and "
            "the plan are made. Make all layers in __init__ or configure_model, or call the module once there."
        )


def has_lazy_layers(root: nn.Module) -> bool:
    """Whether a module has layers without weights, which get them when it is called first.

    Example:
        >>> has_lazy_layers(nn.LazyLinear(2)), has_lazy_layers(nn.Linear(2, 2))
        (True, False)
    """
    return any(is_lazy(tensor) for tensor in [*root.parameters(), *root.buffers()])


def initialize_lazy(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a module that has lazy layers, which have their weights and their classes only then.

    Example:
        >>> layer = nn.LazyLinear(2)
        >>> initialize_lazy(layer, (torch.ones(1, 4),), {})
        >>> layer
        Linear(in_features=4, out_features=2, bias=True)
    """
    if has_lazy_layers(root):
        with torch.no_grad(), modes_kept(root):
            root.eval()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))


def _record(
    root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], recorder: Recorder
) -> tuple[Recorder, Any]:
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    instrument = Instrument()
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
    """Whether the calls that a module's ``forward`` makes can be seen: TorchScript's cannot.

    Example:
        >>> is_open("act", nn.ReLU()), is_open("act", torch.jit.ScriptModule())
        (True, False)
    """
    script = isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction))
    return not script and "parametrizations" not in path.split(".") and not is_instrumented(module)
