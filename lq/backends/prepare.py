"""``prepare``: a float module is made to train for int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lq.backends.float_module import as_inputs, check_float_module, check_weights
from lq.backends.in_place import prepare_in_place, prepare_without_inputs
from lq.backends.plan_calls import architecture
from lq.checks import check_flag
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.core.state import STATE, QATState
from lq.instrument.attach import attach, attach_as_before, detach, instrument_of
from lq.messages import some_of
from lq.tracing.plan import Plan
from lq.tracing.structure import Inputs


def prepare(
    module: nn.Module,
    qconfig: QConfig | str | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Prepare a module for quantization-aware training, in place; its own ``forward`` keeps running.

    The module stays the same object, with its parameters, methods, hooks and submodules. Submodules whose calls are
    quantized get a subclass as their class, and the module gets a submodule ``qat_state``. Its state dict holds every
    key of the float module plus those of ``qat_state``. Fake quantization starts switched off; :func:`set_phase`
    switches it on.

    One call with the example shows what can be quantized. Without an example the plan is read from the module's code
    where that is simple, and otherwise made at the first call.

    Args:
        module: any module. Give a copy to keep the float module. A prepared module is returned as it is, or planned
            anew if the qconfig is another one and it has seen no data.
        qconfig: preset name or :class:`~lq.config.qconfig.QConfig`; ``None`` is "portable".
        example_args: positional inputs of one call; the backend "pt2e" needs them.
        example_kwargs: keyword inputs of that call.

    Returns:
        ``module``; :func:`plan_of` gives its plan.

    Raises:
        TypeError: if ``module`` is not a module, or ``example_args`` not a tuple.
        ValueError: if no layer can be quantized, a pattern matches nothing, the example does not fit, or the parameters
            are not floating point numbers; the message says what to give instead.

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
    example = as_inputs(example_args, example_kwargs)
    before, wanted = getattr(module, STATE, None), as_qconfig("portable" if qconfig is None else qconfig)
    if not isinstance(before, QATState):
        return _prepare(module, wanted, example)
    if qconfig is None or before.qconfig == wanted:
        return module
    instrument = instrument_of(module)
    _release(module)
    try:
        return _prepare(module, wanted, example)
    except Exception:  # a call that is refused changes nothing
        module.add_module(STATE, before)
        if instrument is not None:
            attach_as_before(module, instrument)
        raise


def _prepare(module: nn.Module, qconfig: QConfig, example: Inputs | None) -> nn.Module:
    check_float_module(module)
    check_weights(module)
    if example is None:
        prepare_without_inputs(module, qconfig)
    else:
        prepare_in_place(module, qconfig, example)
    refuse_other_plans(module)
    return module


def _release(prepared: nn.Module) -> None:
    """Make a float module of one that was prepared with another qconfig and never trained."""
    state = state_of(prepared)
    if any(state.observed()):
        raise ValueError(
            f"{type(prepared).__name__} was prepared with another qconfig, {qconfig_of(prepared)}, and has seen data "
            "since. Prepare the float model, or a copy of it: lq.prepare(copy.deepcopy(net), qconfig)."
        )
    detach(prepared)
    del prepared._modules[STATE]


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

    Example:
        >>> net = prepare(nn.Sequential(nn.Linear(4, 2)), "tensorrt")
        >>> again = prepare_again(nn.Sequential(nn.Linear(4, 2)), qconfig_of(net), plan_of(net).to_dict())
        >>> again.load_state_dict(net.state_dict())
        <All keys matched successfully>
    """
    check_float_module(module)
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
            f"The checkpoint was prepared with another plan: {some_of(differing)}. Nothing was loaded; use the "
            "target, qconfig and architecture of that run."
        )


def is_prepared(module: nn.Module) -> bool:
    """Whether ``module`` comes from :func:`prepare`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> is_prepared(net), is_prepared(prepare(net))
        (False, True)
    """
    return isinstance(getattr(module, STATE, None), QATState)


def state_of(prepared: nn.Module) -> QATState:
    """The quantization state of a prepared module.

    Raises:
        ValueError: if it is not prepared.

    Example:
        >>> state_of(prepare(nn.Sequential(nn.Linear(4, 2)))).names
        ['fq_input_1', 'fq_0']
        >>> state_of(nn.Linear(4, 2))
        Traceback (most recent call last):
            ...
        ValueError: Linear is not prepared for QAT; call lq.prepare(module) first.
    """
    state = getattr(prepared, STATE, None)
    if not isinstance(state, QATState):
        raise ValueError(f"{type(prepared).__name__} is not prepared for QAT; call lq.prepare(module) first.")
    return state


def is_planned(prepared: nn.Module) -> bool:
    """Whether a prepared module has its plan, which may be made at its first call.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x if x.sum() > 0 else -x)  # its code alone does not say which
        >>> is_planned(prepare(Net(4, 2))), is_planned(prepare(nn.Sequential(nn.Linear(4, 2))))
        (False, True)
    """
    return isinstance(state_of(prepared).plan, Plan)


def plan_of(prepared: nn.Module) -> Plan:
    """The plan of a prepared module.

    Raises:
        ValueError: if the plan is made at the first call, and there was no call yet.

    Example:
        >>> import torch
        >>> plan = plan_of(prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), example_args=(torch.zeros(1, 4),)))
        >>> [layer.name for layer in plan.layers]
        ['0']
    """
    plan = state_of(prepared).plan
    if not isinstance(plan, Plan):
        raise ValueError(
            f"{type(prepared).__name__} is planned at its first call, and it has not been called. Call it once, or "
            "give lq.prepare(..., example_args=(x,)) an example."
        )
    return plan


def qconfig_of(prepared: nn.Module) -> QConfig:
    """The qconfig that a module was prepared with.

    Example:
        >>> qconfig_of(prepare(nn.Sequential(nn.Linear(4, 2)), "tensorrt")).title
        'tensorrt'
    """
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
    for name, flag in (("fake_quant", fake_quant), ("observer", observer), ("freeze_bn", freeze_bn)):
        check_flag(name, flag)
    state = state_of(prepared)
    state.fake_quant, state.observer, state.freeze_bn = fake_quant, observer, freeze_bn


def refuse_other_plans(module: nn.Module) -> None:
    """Let a prepared module refuse checkpoints of another plan before anything of them is loaded.

    Example:
        >>> one, two = prepare(nn.Sequential(nn.Linear(2, 2))), prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> one.load_state_dict(two.state_dict(), strict=False)
        Traceback (most recent call last):
            ...
        ValueError: The checkpoint was prepared with another plan: it has the fake quantizers ['fq_1'], which ...
    """
    module.register_load_state_dict_pre_hook(_refuse_other_plans)  # type: ignore[no-untyped-call]


def _refuse_other_plans(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before anything is loaded: the layers come before the state, and fit many a checkpoint of another plan."""
    if not is_prepared(module):
        return  # it was, but is to be prepared otherwise
    state_of(module).check_checkpoint(state_dict, f"{prefix}{STATE}.")
