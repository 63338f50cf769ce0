"""Dynamic quantization: int8 weights, activations quantized on the fly; for recurrent and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lq.backends.prepare import is_prepared
from lq.checks import check_module
from lq.compat.deprecations import quiet_torch_ao, quiet_torchscript
from lq.config.presets import PRESETS
from lq.conversion.int8 import quantized_engine
from lq.lightning_module.copies import float_copy

DYNAMIC_LAYERS: dict[str, type[nn.Module]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "Linear": nn.Linear}


def quantize_dynamic(
    model: nn.Module, layers: Sequence[str] = tuple(DYNAMIC_LAYERS), engine: str | None = None
) -> nn.Module:
    """A copy of a model whose LSTM, GRU and linear layers have int8 weights; no data are needed.

    The inputs are quantized at every call, over the range that they have in that call. This is worthwhile where reading
    the weights takes most of the time: recurrent layers, large linear layers, small batches. Convolutions stay float.

    Args:
        model: any module, on any device.
        layers: which kinds, of "LSTM", "GRU" and "Linear".
        engine: ``torch.backends.quantized`` engine; None for that of the preset "portable".

    Returns:
        the copy, on the CPU, in evaluation mode.

    Raises:
        ValueError: if a kind is unknown, the model is prepared for QAT or holds no such layer.

    Source:
        ``torch.ao.quantization.quantize_dynamic``, deprecated, without a successor for LSTM and GRU in torch 2.15.

    Example:
        >>> quantize_dynamic(nn.Sequential(nn.Linear(4, 2)))[0]
        DynamicQuantizedLinear(in_features=4, out_features=2, dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    """
    check_module("model", model)
    engines = torch.backends.quantized.supported_engines
    if engine is not None and engine not in engines:
        raise ValueError(f"engine={engine!r} is not one of this build of PyTorch: {', '.join(engines)}.")
    unknown = [kind for kind in layers if kind not in DYNAMIC_LAYERS]
    if unknown or not layers or isinstance(layers, str):
        raise ValueError(f"layers={layers!r} must be a list of some of {list(DYNAMIC_LAYERS)}.")
    if is_prepared(model):
        raise ValueError("The model is prepared for QAT: convert it with lq.convert, or give the float model.")
    kinds = {DYNAMIC_LAYERS[kind] for kind in layers}
    if not any(type(module) in kinds for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(layers)} to quantize dynamically. Convolutions are quantized "
            "with data: lq.quantize_static(model, batches)."
        )
    twin = float_copy(model).eval()
    with quantized_engine(engine or PRESETS["portable"].engine), quiet_torchscript(), quiet_torch_ao():
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantized: nn.Module = quantize(twin, kinds, dtype=torch.qint8, inplace=True)
    return quantized
