"""``prepare``: a float module becomes a fake-quantized graph that shares its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from lq.backends import eager, pt2e
from lq.backends import fx as fx_backend
from lq.backends.base import Backend, Inputs, Traced
from lq.backends.insert import insert_quantization
from lq.backends.planning import all_floats, float_operations, in_module_order, nothing_to_quantize, warn_of
from lq.backends.self_check import self_check
from lq.core.state import QATState
from lq.qconfig import QConfig, as_qconfig
from lq.tracing.plan import Plan, UntraceablePlan
from lq.tracing.stubs import prepared_by_torch_ao
from lq.tracing.trace import STATE, copy_modes, passed_parameters, trace, untraceable_parts

BACKENDS: Mapping[str, Backend] = {"fx": fx_backend.choose, "eager": eager.choose, "pt2e": pt2e.choose}


def prepare(
    module: nn.Module,
    qconfig: QConfig | str = "portable",
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Insert fake quantizers into a copy of ``module``'s graph; parameters and buffers are shared with ``module``.

    The state dict of the result holds every key of the float module plus those of ``qat_state``, so a float checkpoint
    loads with only the latter missing. Fake quantization starts switched off: see :func:`set_phase`.

    Args:
        module: any module that :func:`lq.tracing.trace.trace` can trace; a prepared module is returned as it is.
        qconfig: preset name or :class:`~lq.qconfig.QConfig`.
        example_args: positional inputs of one call; with them the result is checked against ``module``.
        example_kwargs: keyword inputs of that call.

    Returns:
        the prepared GraphModule; :func:`plan_of` gives its plan.

    Raises:
        ValueError: if no layer can be quantized, a pattern matches nothing or the graph computes something else.
        UntraceableError: if the module cannot be traced.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> prepared = prepare(net, example_args=(torch.randn(2, 1, 4, 4),))
        >>> print(plan_of(prepared).summary())
        Sequential, qconfig portable: 2 of 2 layers quantized, 3 fake quantizers, other operations in float: 0
    """
    if is_prepared(module):
        assert isinstance(module, fx.GraphModule)
        return module
    if example_args is None:
        return prepare_without_example(module, as_qconfig(qconfig))
    kwargs = dict(example_kwargs or {})
    passed = passed_parameters(module, example_args, kwargs)
    graph_module = prepare_without_example(module, as_qconfig(qconfig), passed, (example_args, kwargs))
    self_check(module, graph_module, example_args, kwargs)
    return graph_module


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


def plan_of(prepared: nn.Module) -> Plan:
    """The plan of a prepared module."""
    plan = state_of(prepared).plan
    assert isinstance(plan, Plan)
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
