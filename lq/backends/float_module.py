"""What can be prepared: a float module that somebody calls."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from lq.checks import check_module
from lq.compat.users_code import is_users_code
from lq.core.own_class import Converted
from lq.core.state import STATE, QATState
from lq.tracing.structure import Inputs
from lq.tracing.stubs import prepared_by_torch_ao

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def check_float_module(module: Any) -> None:
    """Refuse what is no float module, or hides one.

    Args:
        module: to be prepared.

    Raises:
        TypeError: if it is no module.
        ValueError: if it wraps one, or it or a part of it was converted or prepared before.

    Example:
        >>> check_float_module(nn.DataParallel(nn.Linear(2, 2)))
        Traceback (most recent call last):
        ...
        ValueError: DataParallel hands its calls on to copies of another module. Prepare that one, module.module, ...
    """
    check_module("module", module)
    kind = type(module).__name__
    if isinstance(module, _WRAPPERS):
        raise ValueError(
            f"{kind} hands its calls on to copies of another module. Prepare that one, module.module, before it is "
            f"wrapped ({_users_line()})."
        )
    if hasattr(module, "_orig_mod"):
        raise ValueError(
            f"{kind} runs compiled code, which is not prepared. Prepare the module itself, module._orig_mod, and "
            "compile the result: torch.compile(lq.prepare(net))."
        )
    if hasattr(module, STATE):
        raise ValueError(f"{kind} already has an attribute {STATE!r}; rename it, lq needs that name.")
    inner = next((name.rpartition(".")[0] for name, part in module.named_modules() if isinstance(part, QATState)), None)
    if inner is not None:
        raise ValueError(
            f"{kind} holds a part that was prepared before, {inner!r}, and would round its values twice. Prepare that "
            "part alone, or a copy of the whole that was made before."
        )
    if any(isinstance(part, Converted) for part in module.modules()):
        raise ValueError(f"{kind} is an int8 model, from lq.convert. Give the float model that it was made from.")
    found = prepared_by_torch_ao(module)
    if found is not None:
        name, part = found
        raise ValueError(
            f"{kind} was prepared or converted by torch.ao before: {name or 'it'} is a {part}. Give "
            "the float model, as it was before prepare_qat; fuse_modules_qat is not needed either, but does no harm."
        )


def _users_line() -> str:
    """The innermost line of the caller's code, "file:line"."""
    frames = traceback.extract_stack()
    frame = next((f for f in reversed(frames) if is_users_code(f.filename)), frames[0])
    return f"{frame.filename}:{frame.lineno}"


def check_weights(module: nn.Module) -> None:
    """Refuse weights, and statistics of BatchNorm, that are no numbers.

    Raises:
        ValueError: naming the first of them with NaN or infinity, or on the meta device.

    Example:
        >>> check_weights(nn.Linear(2, 2))
    """
    statistics = [named for named in module.named_buffers() if named[0].endswith(("running_mean", "running_var"))]
    for name, held in [*module.named_parameters(), *statistics]:
        if nn.parameter.is_lazy(held) or not held.is_floating_point():
            continue
        owner = "the model" if isinstance(module, fx.GraphModule) else type(module).__name__
        if held.device.type == "meta":
            raise ValueError(
                f"{name} of {owner} is on the meta device, where it has no values to plan with. Give it some first: "
                "module.to_empty(device='cpu'), then load_state_dict() or reset_parameters()."
            )
        if not _is_finite(held):
            raise ValueError(
                f"{name} of {owner} holds NaN or infinity, so there is nothing to quantize. Load a "
                "checkpoint from before the training diverged."
            )


def as_inputs(args: Any, kwargs: Any) -> Inputs | None:
    """An example, as ``prepare`` takes it; ``None`` if none was given.

    Raises:
        TypeError: if it has another form.

    Example:
        >>> as_inputs(None, None) is None
        True
        >>> as_inputs(torch.zeros(2), None)
        Traceback (most recent call last):
        ...
        TypeError: example_args is a Tensor; give a tuple of positional inputs, example_args=(x,).
    """
    if args is not None and not isinstance(args, (tuple, list)):
        raise TypeError(
            f"example_args is a {type(args).__name__}; give a tuple of positional inputs, example_args=(x,)."
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"example_kwargs is a {type(kwargs).__name__}; give a mapping of names, example_kwargs={{'x': x}}."
        )
    return None if args is None and not kwargs else (tuple(args or ()), dict(kwargs or {}))


def _is_finite(parameter: torch.Tensor) -> bool:
    if parameter.device.type == "meta" or not parameter.numel():
        return True
    ends = torch.stack(torch.aminmax(parameter.detach()))  # NaN wins in both, and nothing of the weight's size is made
    return bool(torch.isfinite(ends).all())
