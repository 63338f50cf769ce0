"""Any converted or float model as frozen TorchScript, which loads without the code that made it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from lq.deprecations import quiet_torchscript


def export_torchscript(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, optimize: bool = False
) -> torch.jit.ScriptModule:
    """Trace ``model`` and freeze it.

    Args:
        model: in evaluation mode, on the CPU.
        args: positional inputs of one call, on the CPU.
        kwargs: keyword inputs of that call.
        optimize: also fuse for inference (folds BatchNorm of float models).

    Returns:
        the frozen module; it takes other batch sizes than the example's.

    Raises:
        ValueError: if an input is neither a tensor nor a structure of tensors.

    Example:
        >>> frozen = export_torchscript(nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
        >>> frozen(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    inputs = _inputs(model, args, dict(kwargs or {}))
    given: dict[str, Any] = {"example_kwarg_inputs": inputs} if isinstance(inputs, dict) else {"example_inputs": inputs}
    with quiet_torchscript(), torch.no_grad(), warnings.catch_warnings():
        # Shapes that the traced code reads become constants, which the comparison with real batches would show.
        warnings.filterwarnings("ignore", category=TracerWarning)
        trace: Any = torch.jit.trace
        traced = trace(model.eval(), **given, strict=False, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced.eval())
        return torch.jit.optimize_for_inference(frozen) if optimize else frozen


def save_torchscript(model: torch.jit.ScriptModule, path: Path) -> None:
    """Write a TorchScript module."""
    with quiet_torchscript():
        torch.jit.save(model, str(path))


def torchscript_mb(model: torch.jit.ScriptModule) -> float:
    """Size on disk of a TorchScript module in MB (1e6 bytes)."""
    with quiet_torchscript():
        return len(model.save_to_buffer()) / 1e6


def _inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | tuple[Any, ...]:
    """Positional inputs, or all of them by name: the tracer takes one kind at a time."""
    if not kwargs:
        return _checked(args)
    named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    _checked(tuple(named.values()))
    return named


def _checked(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if not isinstance(value, (Tensor, list, tuple, dict)):
            raise ValueError(
                f"TorchScript takes tensors and structures of tensors, but the model was called with a "
                f"{type(value).__name__}. Name an inner module that is called with tensors only: target=..."
            )
    return values
