"""The one place that knows of TorchScript's and int8 tensors' deprecation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Keep the deprecation of TorchScript, and that of int8 tensors, out of the log.

    torch 2.15 deprecates both, and still has nothing else that runs int8 kernels on a CPU from one file without
    the code of the model. This context goes when the artifact moves to ``torch.export``.

    Example:
        >>> with quiet_torchscript():
        ...     traced = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)  # torch 2.13
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, .* are deprecated", UserWarning)
        # This one comes once in a process, and TorchScript would print it to stderr past all filters: draw it
        # here, where it is ignored.
        torch.quantize_per_tensor(torch.zeros(1, dtype=torch.float32), 1.0, 0, torch.quint8)
        yield


@contextmanager
def quiet_properties() -> Iterator[None]:
    """Keep out of the log what the properties of a model say when they are read.

    ``torch.jit.trace`` reads all properties of a module, also deprecated ones and those that the model does not use: a
    model of transformers 5 warns of two.

    Example:
        >>> with quiet_properties():
        ...     warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning)
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`?is_gradient_checkpointing`? is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_torch_ao() -> Iterator[None]:
    """Keep the deprecation of ``torch.ao.quantization`` out of the log, where it is used on purpose.

    torch 2.15 still has nothing else that quantizes LSTM and GRU dynamically (pytorch/ao#2259). This context goes
    with that use.

    Example:
        >>> with quiet_torch_ao():
        ...     warnings.warn("torch.ao.quantization is deprecated and will be removed in 2.10.", DeprecationWarning)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"torch\.ao\.quantization is deprecated", DeprecationWarning)
        yield
