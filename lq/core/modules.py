"""Convolutions and linear layers that train with quantized weights, and fold their BatchNorm where it pays.

With one weight scale per output channel, folding BatchNorm commutes with fake quantization:
``fq(w * g / sigma) = (g / sigma) * fq(w)``. So while the statistics move the layer is simply ``bn(conv(x, fq(w)))``,
with no rescaling by running statistics; once they are frozen, and in evaluation, BatchNorm is folded into weight and
bias. Per-tensor weights do not commute; there the folded weight is quantized, ``fq(w * f) / f`` with ``f = g / sigma``
of the running statistics (Jacob et al., arXiv:1712.05877).
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lq.core.functional import fake_quantize_weight, quantize_weight, weight_scale
from lq.core.state import QATState
from lq.qconfig import WeightSpec

_BUFFER = "_quantized_weight"


class QATLayer(nn.Module):
    """What the QAT layers share; each also is the float layer that it stands for, with the same parameters and keys."""

    weight: Tensor
    bias: Tensor | None
    weight_spec: WeightSpec
    channel_axis = 0

    @classmethod
    def from_float(cls, module: nn.Module, spec: WeightSpec, state: QATState) -> QATLayer:
        """The QAT twin of ``module``; parameters are shared, not copied."""
        twin = cls.__new__(cls)
        twin.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = copy.copy(module.__dict__[name])
        twin.__dict__["state"] = state
        twin.weight_spec = spec
        return twin

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError  # pragma: no cover - each subclass has one

    def forward(self, x: Tensor, bn: nn.Module | None = None) -> Tensor:
        """The layer and, if given, the BatchNorm behind it.

        Raises:
            ValueError: if BatchNorm would normalize another axis than the layer's channels.
        """
        state: QATState = self.__dict__["state"]
        if bn is not None and x.dim() != self.weight.dim():
            raise ValueError(
                f"{_kind(self)} with a BatchNorm behind it got an input of {x.dim()} dimensions; the two are one "
                f"layer only with {self.weight.dim()}. Exclude it, e.g. QConfig(exclude=('type:{_kind(self)}',))."
            )
        if not state.fake_quant:
            plain = self._compute(x, self.weight, self.bias)
            return plain if bn is None else bn(plain)
        if bn is None:
            return self._compute(x, self._quantized(), self.bias)
        norm = cast(_BatchNorm, bn)
        if self.training and not state.freeze_bn:
            running = None if self.weight_spec.per_channel else self._folding(norm)[0].detach()
            y: Tensor = bn(self._compute(x, self._quantized(running=running), self.bias))
            return y
        factor, bias = self._folding(norm)
        return self._compute(x, self._quantized(factor, factor.detach()), bias.to(self.weight.dtype))

    def _quantized(self, factor: Tensor | None = None, running: Tensor | None = None) -> Tensor:
        """The weight on its grid, times the folding factor of a BatchNorm if it is given.

        ``running`` is that factor as a constant: the grid of a per-tensor weight depends on it, folded or not.
        """
        spec, weight = self.weight_spec, self.weight
        factor = None if factor is None else self._along_channels(factor)
        if spec.per_channel or running is None:
            scale = weight_scale(weight, spec.quant_max, spec.per_channel, self.channel_axis)
            return fake_quantize_weight(weight, scale, factor, self._buffer()).to(weight.dtype)
        running = self._along_channels(running)
        folded = weight * running
        quantized = fake_quantize_weight(folded, weight_scale(folded, spec.quant_max, False)) / running
        return (quantized if factor is None else quantized * factor).to(weight.dtype)

    def _buffer(self) -> Tensor | None:
        """Memory for the quantized weight: a fresh tensor per step costs more than the arithmetic."""
        if torch.compiler.is_compiling() or not (self.training and torch.is_grad_enabled()):
            return None  # an evaluation between a forward and its backward pass must not overwrite what that needs
        weight = self.weight
        kept: Tensor | None = self.__dict__.get(_BUFFER)
        if (
            kept is None
            or kept.shape != weight.shape
            or kept.device != weight.device
            or kept.stride() != weight.stride()
        ):
            kept = self.__dict__[_BUFFER] = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != _BUFFER}

    def _folding(self, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
        """What weight and bias become with ``bn`` folded in: a factor per channel and the new bias, in float32."""
        assert bn.running_mean is not None
        assert bn.running_var is not None
        factor = torch.rsqrt(bn.running_var.float() + bn.eps)
        if bn.weight is not None:
            factor = factor * bn.weight
        factor = _away_from_zero(factor)
        bias = (-bn.running_mean if self.bias is None else self.bias - bn.running_mean) * factor
        return factor, bias if bn.bias is None else bias + bn.bias

    def _along_channels(self, vector: Tensor) -> Tensor:
        shape = [1] * self.weight.dim()
        shape[self.channel_axis] = -1
        return vector.reshape(shape)

    @torch.no_grad()
    def integer_weight(self, bn: _BatchNorm | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the int8 model computes with.

        Returns:
            ``(integers, scale, bias)``: int8 of the weight's shape, float32 of shape (channels,) or () per tensor, and
            the float bias, BatchNorm folded into all three.
        """
        spec, weight = self.weight_spec, self.weight.float()
        if bn is None:
            scale = weight_scale(weight, spec.quant_max, spec.per_channel, self.channel_axis)
            return quantize_weight(weight, scale), scale.flatten() if spec.per_channel else scale, self.bias
        factor, bias = self._folding(bn)
        if not spec.per_channel:
            folded = weight * self._along_channels(factor)
            scale = weight_scale(folded, spec.quant_max, False)
            return quantize_weight(folded, scale), scale, bias
        scale = weight_scale(weight, spec.quant_max, True, self.channel_axis)
        integers = quantize_weight(weight, scale) * self._along_channels(torch.sign(factor)).to(torch.int8)
        return integers, scale.flatten() * factor.abs(), bias

    def extra_repr(self) -> str:
        """The float layer's, and the grid of the weight."""
        return f"{super().extra_repr()}, weight={self.weight_spec}"


def _away_from_zero(factor: Tensor) -> Tensor:
    """A channel whose BatchNorm weight is 0 still has to learn; 1e-12 instead is 0 to everything downstream."""
    return torch.where(factor.abs() < 1e-12, factor + 1e-12, factor)


def _kind(layer: QATLayer) -> str:
    return type(layer).__name__.removeprefix("QAT")


class QATLinear(QATLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear says Tensor of a bias that may be None
    """Linear layer with a quantized weight."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class QATConv1d(QATLayer, nn.Conv1d):
    """1d convolution with a quantized weight."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv2d(QATLayer, nn.Conv2d):
    """2d convolution with a quantized weight."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


class QATConv3d(QATLayer, nn.Conv3d):
    """3d convolution with a quantized weight."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


QAT_LAYERS: dict[type[nn.Module], type[QATLayer]] = {
    nn.Linear: QATLinear,
    nn.Conv1d: QATConv1d,
    nn.Conv2d: QATConv2d,
    nn.Conv3d: QATConv3d,
}


def qat_twin(module: nn.Module) -> type[QATLayer] | None:
    """The QAT class for a float layer, or ``None``; subclasses with a forward of their own are not touched."""
    for base, twin in QAT_LAYERS.items():
        if isinstance(module, base) and type(module).forward is base.forward:
            return twin
    return None


def has_running_statistics(bn: nn.Module) -> bool:
    """Whether ``bn`` can be folded: it is a BatchNorm that tracks its statistics."""
    return isinstance(bn, _BatchNorm) and bn.track_running_stats


__all__: list[str] = [
    "QAT_LAYERS",
    "QATConv1d",
    "QATConv2d",
    "QATConv3d",
    "QATLayer",
    "QATLinear",
    "has_running_statistics",
    "qat_twin",
]
