"""How every backend prepares: the user's module is recorded, planned and instrumented where it stands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from lq.backends.plan_calls import plan_calls
from lq.backends.planning import warn_of
from lq.backends.pt2e.capture import several
from lq.backends.rehearsal import rehearse_sites
from lq.config.patterns import matches
from lq.config.qconfig import QConfig
from lq.core.state import STATE, QATState
from lq.instrument.attach import attach, defer, detach, instrument_of
from lq.instrument.places import Instrument, kept_example
from lq.instrument.record import Recording, has_lazy_layers, record
from lq.tracing.inputs import describe_inputs
from lq.tracing.opened import OF_RECURRENCE
from lq.tracing.sites import Sites, in_place_joins
from lq.tracing.structure import Inputs, map_tensors, on_device, without_graph
from lq.tracing.symbolic import NotPlainError, read_calls


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

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prepare_in_place(net, QConfig(), ((torch.ones(1, 4),), {})).names
        ['fq_input_1', 'fq_0', 'fq_2']
    """
    _check_not_scripted(module)
    return _prepare(module, qconfig, example)


def _prepare(module: nn.Module, qconfig: QConfig, example: Inputs, state: QATState | None = None) -> QATState:
    if qconfig.backend == "pt2e":
        example = several(example)
    example = without_graph(example)
    recording = _recorded(module, example, qconfig)
    recorder = recording.evaluation
    training = recording.training.calls if recording.training is not None else []
    opened = [*recorder.opened, *(recording.training.opened if recording.training is not None else [])]
    sites, plan = plan_calls(
        module, qconfig, recorder.graph, recorder.calls, training, recorder.unknown, example, opened
    )
    is_new = state is None
    state = attach(module, sites, state)
    try:
        sites = _rehearsed(module, recording, example, sites, state)
    except Exception:
        detach(module)
        if is_new:
            del module._modules[STATE]
        raise
    plan = replace(plan, sites=sites, inputs=describe_inputs(example))
    state.plan, state.qconfig = plan, qconfig
    _instrument(module).example = kept_example(*example)
    warn_of(plan)
    return state


def _rehearsed(module: nn.Module, recording: Recording, example: Inputs, sites: Sites, state: QATState) -> Sites:
    """The plan under which the module computes what it did: with joins as the user wrote them, if need be."""
    if rehearse_sites(module, recording, example):
        return sites
    if sites.fresh:
        sites = in_place_joins(sites)
        detach(module)
        attach(module, sites, state)
        if rehearse_sites(module, recording, example):
            return sites
    raise ValueError(
        f"{type(module).__name__} gives other outputs when its tensors are copied. Either its code modifies a tensor "
        "in place and reads it elsewhere through a view, or it is random in evaluation mode. Exclude that part, "
        "QConfig(exclude=[...]), or write x = x + y instead of x += y there."
    )


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
        ValueError: if no layer can be quantized, a pattern matches nothing, scales are to be learned, which an
            optimizer has to know before the first call, or a vendor's quantizer wants a call to export.

    Example:
        >>> state = prepare_without_inputs(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), QConfig())
        >>> state.names, state.activations
        (['fq_input_1', 'fq_0'], ['none', 'relu'])
    """
    _check_not_scripted(module)
    if qconfig.backend == "pt2e":
        raise ValueError(
            "backend='pt2e' exports the model, which takes an example of its inputs: lq.prepare(..., "
            "example_args=(x,)), or self.example_input_array = torch.rand(2, 3, 224, 224) in __init__ of the "
            "LightningModule, if it or its target can be called with that, or a fit that has validation data."
        )
    if not has_lazy_layers(module) and not qconfig.opens:
        try:
            graph, calls, training = read_calls(module, stubs=qconfig.backend == "eager")
        except NotPlainError:
            pass
        else:
            sites, plan = plan_calls(module, qconfig, graph, calls, training)
            state = attach(module, sites)
            state.plan, state.qconfig = plan, qconfig
            warn_of(plan)
            return state
    if qconfig.learns_scales:
        raise ValueError(
            f"The code of {type(module).__name__} cannot be traced, so it is planned at its first call. But the "
            "learned scales have to exist before the optimizer is created. Write lq.prepare(..., example_args=(x,)), "
            "or give the fit validation data, or set self.example_input_array in __init__ of the LightningModule."
        )
    state = defer(module, partial(_plan_at_first_call, qconfig))
    state.qconfig = qconfig
    return state


def plan_at_once(module: nn.Module, example: Inputs) -> None:
    """Plan a prepared module that waits for its first call; one that has a plan stays as it is.

    Args:
        module: from :func:`lq.prepare`.
        example: inputs of one call, in any place.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return super().forward(x if x.sum() > 0 else -x)  # its code alone does not say enough
        >>> net = Net(4, 2)
        >>> state = prepare_without_inputs(net, QConfig())
        >>> plan_at_once(net, ((torch.ones(1, 4),), {}))
        >>> state.names
        ['fq_x', 'fq_linear']
    """
    instrument = instrument_of(module)
    if instrument is not None and instrument.deferred is not None:
        instrument.deferred(module, like(module, example))


def like(module: nn.Module, example: Inputs) -> Inputs:
    """Inputs on the module's device, floating tensors in its dtype.

    Example:
        >>> (x, index), _ = like(nn.Linear(4, 2).double(), ((torch.ones(1, 4), torch.tensor([3])), {}))
        >>> x.dtype, index.dtype
        (torch.float64, torch.int64)
    """
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return example

    def in_its_type(tensor: Tensor) -> Tensor:
        return tensor.detach().to(parameter.dtype) if tensor.is_floating_point() else tensor.detach()

    found: Inputs = map_tensors(on_device(example, parameter.device), in_its_type)
    return found


def _plan_at_first_call(qconfig: QConfig, module: nn.Module, example: Inputs) -> None:
    state = module.get_submodule(STATE)
    assert isinstance(state, QATState)
    detach(module)
    try:
        # A validation before the fit runs in inference mode, whose tensors no training can write to.
        with torch.inference_mode(False), torch.no_grad():
            _prepare(module, qconfig, example, state)
    except Exception:  # the next call may be a better example
        state.empty()
        defer(module, partial(_plan_at_first_call, qconfig), state)
        raise


def _check_not_scripted(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{type(module).__name__} was compiled by torch.jit, so its calls of layers cannot be seen. Give the "
            "module that it was compiled from, and script or trace the result when it is trained."
        )


def _opens(module: nn.Module, qconfig: QConfig, path: str, operation: str) -> bool:
    """Whether an operation of a part is planned, and trained, step by step."""
    wanted, part = qconfig.recurrence if operation in OF_RECURRENCE else qconfig.attention, module.get_submodule(path)
    if wanted == "float" or any(matches(pattern, path, part) for pattern in qconfig.exclude):
        return False
    return qconfig.excludes(f"{path}.{operation}".lstrip("."), part) is None


def _recorded(module: nn.Module, example: Inputs, qconfig: QConfig) -> Recording:
    try:
        opens = partial(_opens, module, qconfig) if qconfig.opens else None
        return record(module, *example, stubs=qconfig.backend == "eager", opens=opens)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be called with the example: {type(error).__name__}: {error}. Give "
            "inputs as it is called with in evaluation."
        ) from error
