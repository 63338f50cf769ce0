"""As what the backward pass finds what the forward pass has quantized."""

from __future__ import annotations

from torch import nn

from lq.backends.prepare import state_of

SAVINGS = ("floats", "bytes")


def set_saving(prepared: nn.Module, save: str) -> None:
    """Choose as what autograd keeps the quantized tensors of a prepared module for the backward pass.

    ``"floats"`` is the faster one. With ``"bytes"`` a quantized activation is kept as its integers, nine bits a value,
    and a quantized weight not at all; both are made again in the backward pass. Every gradient is the same to the bit.

    Args:
        prepared: from :func:`prepare`.
        save: ``"floats"`` or ``"bytes"``.

    Raises:
        ValueError: on another word, or if the module is not prepared.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> set_saving(prepared, "bytes")
        >>> prepared.qat_state.saves_bytes
        True
    """
    check_saving(save)
    state_of(prepared).saves_bytes = save == "bytes"


def check_saving(save: str) -> None:
    """Refuse what :func:`set_saving` does not know.

    Example:
        >>> check_saving("int8")
        Traceback (most recent call last):
            ...
        ValueError: save='int8' is unknown; choose one of ['floats', 'bytes'], e.g. save='bytes'.
    """
    if save not in SAVINGS:
        raise ValueError(f"save={save!r} is unknown; choose one of {list(SAVINGS)}, e.g. save='bytes'.")
