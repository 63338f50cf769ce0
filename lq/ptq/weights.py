"""The weights that a layer computes with, in float and in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from lq.compat.torch_private import BatchNorm
from lq.core.modules import QATLayer


@torch.no_grad()
def folded_weights(layer: QATLayer, norm: BatchNorm | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weight that a layer has in float, the one that int8 gives it, and the bias, BatchNorm folded into all.

    Args:
        layer: of a prepared model.
        norm: the BatchNorm behind it, if any.

    Returns:
        two float32 tensors of the weight's shape, and the bias of shape (channels,) or None.

    Example:
        >>> from torch import nn
        >>> from lq.backends.prepare import prepare
        >>> from lq.ptq.layers import layers_of
        >>> (layer,) = layers_of(prepare(nn.Sequential(nn.Linear(4, 2))))
        >>> exact, rounded, bias = folded_weights(layer.module, layer.norm)
        >>> bool((exact - rounded).abs().max() < exact.abs().max() / 63)
        True
    """
    integers, scale, bias = layer.integer_weight(norm)
    exact = layer.weight.float()
    if norm is not None:
        factor, _ = layer.folding(norm)
        exact = exact * layer.along_channels(factor)
    shaped = scale if scale.dim() == 0 else layer.along_channels(scale)
    return exact, integers.float() * shaped, bias
