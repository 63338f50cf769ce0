"""Activations of 16 bits, for which most runtimes have no integers."""

from __future__ import annotations

from torch import nn

from lq.backends.prepare import state_of
from lq.messages import some_of


def wide_activations(prepared: nn.Module) -> list[str]:
    """The names of those that have more than 8 bits.

    Args:
        prepared: from :func:`lq.prepare`.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.config.qconfig import QConfig
        >>> from lq.config.specs import ActivationSpec
        >>> wide = QConfig("qnn", activation=ActivationSpec(0, 65535))
        >>> wide_activations(prepare(nn.Sequential(nn.Linear(4, 2)), wide, example_args=(torch.ones(1, 4),)))
        ['fq_input_1', 'fq_0']
    """
    state = state_of(prepared)
    return [name for name, spec in zip(state.names, state.specs, strict=True) if spec.bits > 8]


def check_eight_bits(prepared: nn.Module, runtime: str) -> None:
    """Check that a runtime that has integers of 8 bits has those of all activations.

    Args:
        prepared: from :func:`lq.prepare`.
        runtime: how the message begins.

    Raises:
        ValueError: naming the activations of 16 bits.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import prepare
        >>> from lq.config.qconfig import QConfig
        >>> from lq.config.specs import ActivationSpec
        >>> wide = QConfig("qnn", activation=ActivationSpec(0, 65535))
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)), wide, example_args=(torch.ones(1, 4),))
        >>> check_eight_bits(prepared, "PyTorch")
        Traceback (most recent call last):
        ...
        ValueError: PyTorch does not support 16-bit activations, but fq_input_1, fq_0 have 16 bits. Use 8 bits, ...
    """
    wide = wide_activations(prepared)
    if wide:
        verb = "has" if len(wide) == 1 else "have"
        raise ValueError(
            f"{runtime} does not support 16-bit activations, but {some_of(wide, 3)} {verb} 16 bits. Use 8 bits, or "
            "export only 'qnn'."
        )
