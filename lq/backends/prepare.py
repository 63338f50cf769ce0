"""``prepare``: a float module is made to train for int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.backends import eager, pt2e
from lq.backends import fx as fx_backend
from lq.backends.base import Backend, Inputs, Traced
from lq.backends.in_place import prepare_in_place, prepare_without_inputs
from lq.backends.insert import insert_quantization, refuse_other_plans
from lq.backends.plan_calls import architecture
from lq.backends.planning import all_floats, float_operations, in_module_order, nothing_to_quantize, warn_of
from lq.backends.self_check import self_check
from lq.core.state import STATE, QATState
from lq.instrument.attach import attach
from lq.qconfig import QConfig, as_qconfig
from lq.tracing.plan import Plan, UntraceablePlan
from lq.tracing.stubs import prepared_by_torch_ao
from lq.tracing.trace import copy_modes, passed_parameters, trace, untraceable_parts

BACKENDS: Mapping[str, Backend] = {"fx": fx_backend.choose, "eager": eager.choose, "pt2e": pt2e.choose}


def prepare(
    module: nn.Module,
    qconfig: QConfig | str = "portable",
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Let a module train for int8: it is instrumented in place, and its own ``forward`` keeps running.

    The module stays the object that it is, with its parameters, methods, hooks and submodules; the classes of those
    whose calls are quantized become subclasses, and it gets a submodule ``qat_state``. Its state dict holds every key
    of the float module plus those of ``qat_state``, so a float checkpoint loads with only the latter missing. Fake
    quantization starts switched off: see :func:`set_phase`.

    What is quantized is planned from one call with the example. Without one it is read off the module's code where that
    is plain; else it is planned at the first call.

    Args:
        module: any module; a prepared one is returned as it is. To keep a float one beside it, give a copy.
        qconfig: preset name or :class:`~lq.qconfig.QConfig`. The backends "eager" and "pt2e" return a graph in the
            place of the module, which has to be traceable.
        example_args: positional inputs of one call.
        example_kwargs: keyword inputs of that call.

    Returns:
        ``module``; :func:`plan_of` gives its plan.

    Raises:
        ValueError: if no layer can be quantized, a pattern matches nothing, or the example does not fit.
        UntraceableError: of the other backends, if the module cannot be traced.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> prepared = prepare(net, example_args=(torch.randn(2, 1, 4, 4),))
        >>> prepared is net
        True
        >>> print(plan_of(prepared).summary())
        Sequential, qconfig portable: 2 of 2 layers quantized, 100% of the work, 3 fake quantizers, other operations in
        float: 0
    """
    if is_prepared(module):
        return module
    qconfig = as_qconfig(qconfig)
    if qconfig.backend == "fx":
        return _prepare_in_place(module, qconfig, example_args, dict(example_kwargs or {}))
    if example_args is None and example_kwargs is None:
        return prepare_without_example(module, qconfig)
    args, kwargs = example_args or (), dict(example_kwargs or {})
    passed = passed_parameters(module, args, kwargs)
    graph_module = prepare_without_example(module, qconfig, passed, (args, kwargs))
    self_check(module, graph_module, args, kwargs)
    return graph_module


def _prepare_in_place(module: nn.Module, qconfig: QConfig, args: tuple[Any, ...] | None, kwargs: Any) -> nn.Module:
    _check_is_float(module)
    if args is None and not kwargs:
        prepare_without_inputs(module, qconfig)
    else:
        prepare_in_place(module, qconfig, (args or (), kwargs))
    refuse_other_plans(module)
    return module


def prepare_again(module: nn.Module, qconfig: QConfig, plan: Mapping[str, Any]) -> nn.Module:
    """Prepare a float module as another of its kind was, without inputs.

    Args:
        module: a float module.
        qconfig: of that time.
        plan: :meth:`~lq.tracing.plan.Plan.to_dict` of the other one.

    Returns:
        the module, prepared.

    Raises:
        ValueError: if it lacks a part that the plan names.
    """
    _check_is_float(module)
    known = Plan.from_dict(plan)
    assert known.sites is not None
    _check_same_architecture(module, known)
    state = attach(module, known.sites)
    state.plan, state.qconfig = known, qconfig
    refuse_other_plans(module)
    return module


def _check_same_architecture(module: nn.Module, plan: Plan) -> None:
    ours, theirs = dict(architecture(module)), dict(plan.modules)
    differing = [
        f"{name or 'the target'} is a {ours.get(name, 'missing part')} (there {theirs.get(name, 'not there')})"
        for name in ours | theirs
        if ours.get(name, "").removeprefix("Lazy") != theirs.get(name, "").removeprefix("Lazy")
    ]
    # More or fewer parts than there: the weights do not fit either, and say so.
    if differing and ours.keys() == theirs.keys():
        raise ValueError(
            f"The checkpoint was prepared with another plan: {', '.join(differing[:5])}. Nothing was loaded; use the "
            "target, qconfig and architecture of that run."
        )


def prepare_without_example(
    module: nn.Module,
    qconfig: QConfig,
    passed: frozenset[str] = frozenset(),
    example: Inputs | None = None,
    vendor: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """What :func:`prepare` does before its self-check.

    Args:
        module: a float module.
        qconfig: what to quantize and how.
        passed: names of the ``forward`` parameters with a default that calls pass.
        example: inputs of one call, for backends that need some.
        vendor: ``plan.vendor`` of the same module when it was prepared before, instead of asking again.

    Returns:
        the prepared GraphModule.

    Raises:
        ValueError: if no layer can be quantized or a pattern matches nothing.
        UntraceableError: if the module cannot be traced.
    """
    _check_is_float(module)
    qconfig.check_patterns({name: m for name, m in module.named_modules() if name})
    graph_module = trace(module, passed)
    untraceable = untraceable_parts(graph_module)
    choice = BACKENDS[qconfig.backend](Traced(module, graph_module, tuple(untraceable), qconfig, example, vendor))
    if not choice.layers:
        raise ValueError(nothing_to_quantize(module, all_floats(module, choice), untraceable))
    float_ops = float_operations(graph_module, choice)
    state, rows, tensors = insert_quantization(graph_module, choice.layers, choice.sites, qconfig)
    state.qconfig = qconfig
    state.plan = Plan(
        type(module).__name__,
        qconfig.title,
        in_module_order(module, rows + all_floats(module, choice)),
        tensors,
        float_ops,
        tuple(UntraceablePlan(name, reason) for name, reason in untraceable.items()),
        tuple(sorted(passed)),
        choice.remarks,
        choice.vendor,
    )
    warn_of(state.plan)
    copy_modes(module, graph_module)
    return graph_module


def is_prepared(module: nn.Module) -> bool:
    """Whether ``module`` comes from :func:`prepare`."""
    return isinstance(getattr(module, STATE, None), QATState)


def state_of(prepared: nn.Module) -> QATState:
    """The quantization state of a prepared module.

    Raises:
        ValueError: if it is not prepared.
    """
    state = getattr(prepared, STATE, None)
    if not isinstance(state, QATState):
        raise ValueError(f"{type(prepared).__name__} is not prepared for QAT; call lq.prepare(module) first.")
    return state


def is_planned(prepared: nn.Module) -> bool:
    """Whether a prepared module has its plan, which may be made at its first call."""
    return isinstance(state_of(prepared).plan, Plan)


def plan_of(prepared: nn.Module) -> Plan:
    """The plan of a prepared module.

    Raises:
        ValueError: if it is made at the first call, and there was none.
    """
    plan = state_of(prepared).plan
    if not isinstance(plan, Plan):
        raise ValueError(
            f"{type(prepared).__name__} is planned at its first call, and it has not been called. Call it once, or "
            "give lq.prepare(..., example_args=(x,)) an example."
        )
    return plan


def qconfig_of(prepared: nn.Module) -> QConfig:
    """The qconfig that a module was prepared with."""
    qconfig = state_of(prepared).qconfig
    assert isinstance(qconfig, QConfig)
    return qconfig


def set_phase(prepared: nn.Module, *, fake_quant: bool, observer: bool, freeze_bn: bool) -> None:
    """Switch fake quantization, range observers and BatchNorm folding of a prepared module on or off.

    Example:
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
        >>> prepared.qat_state.fake_quant
        True
    """
    state = state_of(prepared)
    state.fake_quant, state.observer, state.freeze_bn = fake_quant, observer, freeze_bn


def _check_is_float(module: nn.Module) -> None:
    found = prepared_by_torch_ao(module)
    if found is not None:
        name, kind = found
        raise ValueError(
            f"{type(module).__name__} was prepared or converted by torch.ao before: {name or 'it'} is a {kind}. Give "
            "the float model, as it was before prepare_qat; fuse_modules_qat is not needed either, but does no harm."
        )
