"""The weight of one layer on its grid, with BatchNorm folded where that pays.

With one weight scale per output channel, folding BatchNorm commutes with fake quantization:
``fq(w * g / sigma) = (g / sigma) * fq(w)``. So while the statistics move the layer is simply ``bn(conv(x, fq(w)))``,
with no rescaling by running statistics; once they are frozen, and in evaluation, BatchNorm is folded into weight and
bias, where that is less work. Per-tensor weights do not commute; there the folded weight is quantized,
``fq(w * f) / f`` with ``f = g / sigma`` of the running statistics (Jacob et al., arXiv:1712.05877).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lq.config.specs import WeightSpec
from lq.core.lsq import LearnedScale, learned_fake_quantize
from lq.core.scratch import Scratch
from lq.core.weight import Covering, fake_quantize_weight, quantize_weight, weight_scale


class WeightQuantizer(nn.Module):
    """Rounds the weight of one layer.

    Args:
        spec: its grid.
        channel_axis: the output channels' axis of the weight.
        like: a weight, of whose shape and device a learned scale is made; only ``spec.learned_scale`` needs one.

    Example:
        >>> quantizer = WeightQuantizer(WeightSpec(-127, 127))
        >>> quantizer.quantized(torch.tensor([[1.27, -0.504]]), training=True)
        tensor([[ 1.2700, -0.5000]])
    """

    def __init__(self, spec: WeightSpec, channel_axis: int = 0, like: Tensor | None = None) -> None:
        super().__init__()
        self.spec, self.channel_axis = spec, channel_axis
        self._unsearched = replace(spec, observer="minmax")
        self._start_is_held, self._memory = False, Scratch()
        self.off = False
        self.learned_scale: LearnedScale | None = None
        if spec.learned_scale:
            assert like is not None
            reference = self._reference_scale(like)
            self.learned_scale = LearnedScale(reference, searched=spec.observer != "minmax")

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, without a BatchNorm."""
        return self.quantized(weight, self.training)

    def quantized(self, weight: Tensor, training: bool, factor: Tensor | None = None, fold: bool = False) -> Tensor:
        """The weight on its grid.

        Args:
            weight: float tensor, of any shape.
            training: whether a learned scale that is not set yet may be started from the weight.
            factor: what a BatchNorm multiplies each channel by; the grid of a per-tensor weight depends on it.
            fold: whether to multiply by it.

        Returns:
            tensor like ``weight``.
        """
        spec = self.spec
        if factor is not None:
            factor = along_channels(factor, weight, self.channel_axis)
        if factor is not None and not spec.per_channel:
            constant = factor.detach()
            on_grid = self._on_grid(weight * constant, training) / constant
        elif spec.learned_scale or spec.observer != "minmax":
            on_grid = self._on_grid(weight, training)
        else:
            compiles = torch.compiler.is_compiling()
            memory = None if compiles else self._memory
            scale = self.observed_scale(weight) if compiles else Covering(spec, self.channel_axis)
            return fake_quantize_weight(weight, scale, factor if fold else None, memory).to(weight.dtype)
        return (on_grid * factor if fold and factor is not None else on_grid).to(weight.dtype)

    def _on_grid(self, weight: Tensor, training: bool) -> Tensor:
        spec, scale = self.spec, self.scale(weight, training)
        if spec.learned_scale or spec.observer != "minmax":  # such a scale may clip
            return learned_fake_quantize(weight, scale, spec.quant_min, spec.quant_max)
        return fake_quantize_weight(weight, scale)

    def observed_scale(self, weight: Tensor) -> Tensor:
        """The scale that the observer finds, shaped to broadcast against ``weight``."""
        return weight_scale(weight, self.spec, self.channel_axis)

    def scale(self, weight: Tensor, training: bool = False) -> Tensor:
        """The scale that counts: the learned one if there is one, else the observed one.

        Args:
            weight: float tensor, in which BatchNorm is folded if it is quantized so.
            training: whether the start of a learned scale, if that takes a search, may be held from now on.

        Returns:
            float32, shaped to broadcast against ``weight``; only a learned scale has a gradient.
        """
        learned = self.learned_scale
        if learned is None or learned.start is None:
            observed = self.observed_scale(weight)
            return observed if learned is None else learned.forward(observed)
        reference = self._reference_scale(weight)
        if self._start_is_held:
            return learned.forward(reference)
        observed = self.observed_scale(weight)
        if training:
            learned.begin(reference, observed)
            self._start_is_held = True
        return learned.forward(reference, observed)

    def _reference_scale(self, weight: Tensor) -> Tensor:
        """A scale that takes no search."""
        return weight_scale(weight, self._unsearched, self.channel_axis)

    def forget(self) -> None:
        """A learned scale has been loaded; its start may be still to be searched for."""
        self._start_is_held = False

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The int8 weight of the deployed model, and its scale, shaped to broadcast."""
        scale = self.scale(weight)
        return quantize_weight(weight, scale, self.spec.quant_max), scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.forget()

    def extra_repr(self) -> str:
        """The grid."""
        return str(self.spec)


def along_channels(vector: Tensor, weight: Tensor, channel_axis: int) -> Tensor:
    """A number for each output channel, shaped to broadcast against a weight.

    Example:
        >>> along_channels(torch.ones(8), torch.ones(8, 3, 3, 3), 0).shape
        torch.Size([8, 1, 1, 1])
    """
    shape = [1] * weight.dim()
    shape[channel_axis] = -1
    return vector.reshape(shape)
