"""What layers with quantized weights share: the grid of the weight, and BatchNorm folded where it pays.

With one weight scale per output channel, folding BatchNorm commutes with fake quantization:
``fq(w * g / sigma) = (g / sigma) * fq(w)``. So while the statistics move the layer is simply ``bn(conv(x, fq(w)))``,
with no rescaling by running statistics; once they are frozen, and in evaluation, BatchNorm is folded into weight and
bias, where that is less work. Per-tensor weights do not commute; there the folded weight is quantized,
``fq(w * f) / f`` with ``f = g / sigma`` of the running statistics (Jacob et al., arXiv:1712.05877).
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lq.core.functional import EPS
from lq.core.lsq import learned_fake_quantize, started_scale
from lq.core.state import QATState
from lq.core.weight import Scratch, fake_quantize_weight, quantize_weight, weight_scale
from lq.specs import WeightSpec


class QATLayer(nn.Module):
    """What the QAT layers share; each also is the float layer that it stands for, with the same parameters and keys."""

    state: QATState
    weight: Tensor
    bias: Tensor | None
    weight_spec: WeightSpec
    weight_scale: nn.Parameter | None
    channel_axis = 0
    _scale_is_set: bool
    _memory: Scratch

    @classmethod
    def from_float(cls, module: nn.Module, spec: WeightSpec, state: QATState) -> QATLayer:
        """The QAT twin of ``module``; parameters are shared, not copied.

        A learned scale is a parameter of its own, ``weight_scale``, and 0 until the first training step takes it from
        the weights.
        """
        twin = cls.__new__(cls)
        twin.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = copy.copy(module.__dict__[name])
        twin.__dict__["state"] = state  # not registered as a child
        twin.weight_spec = spec
        twin._scale_is_set, twin._memory = False, Scratch()
        shape = twin._observed_scale(twin.weight).shape
        scale = nn.Parameter(torch.zeros(shape, device=twin.weight.device)) if spec.learned_scale else None
        twin.register_parameter("weight_scale", scale)
        return twin

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError  # pragma: no cover - each subclass has one

    def forward(self, x: Tensor, bn: nn.Module | None = None) -> Tensor:
        """The layer and, if given, the BatchNorm behind it.

        Raises:
            ValueError: if BatchNorm would normalize another axis than the layer's channels.
        """
        if bn is not None and x.dim() != self.weight.dim():
            raise ValueError(
                f"{_kind(self)} with a BatchNorm behind it got an input of {x.dim()} dimensions; the two are one "
                f"layer only with {self.weight.dim()}. Exclude it, e.g. QConfig(exclude=('type:{_kind(self)}',))."
            )
        if not self.state.fake_quant:
            plain = self._compute(x, self.weight, self.bias)
            return plain if bn is None else bn(plain)
        if bn is None:
            return self._compute(x, self._quantized(), self.bias)
        norm = cast(_BatchNorm, bn)
        # Folding costs passes over the weight, in training also backward; it pays where the activation is the larger.
        # Evaluation does not ask for the phase, or torch.compile would compile it for each.
        if not self.training or (self.state.freeze_bn and x.numel() >= self.weight.numel()):
            factor, bias = self._folding(norm)
            return self._compute(x, self._quantized(factor, fold=True), bias.to(self.weight.dtype))
        grid_factor = None if self.weight_spec.per_channel else self._folding(norm)[0]
        y = self._compute(x, self._quantized(grid_factor), self.bias)
        return _normalize_frozen(y, norm) if self.state.freeze_bn else cast(Tensor, bn(y))

    def _quantized(self, factor: Tensor | None = None, fold: bool = False) -> Tensor:
        """The weight on its grid.

        Args:
            factor: what a BatchNorm multiplies each channel by; the grid of a per-tensor weight depends on it.
            fold: whether to multiply by it.
        """
        spec, weight = self.weight_spec, self.weight
        if factor is not None:
            factor = self._along_channels(factor)
        if factor is not None and not spec.per_channel:
            constant = factor.detach()
            quantized = self._on_grid(weight * constant) / constant
        elif spec.learned_scale or spec.observer != "minmax":
            quantized = self._on_grid(weight)
        else:
            memory = None if torch.compiler.is_compiling() else self._memory
            scale = self._observed_scale(weight)
            return fake_quantize_weight(weight, scale, factor if fold else None, memory).to(weight.dtype)
        return (quantized * factor if fold and factor is not None else quantized).to(weight.dtype)

    def _on_grid(self, weight: Tensor) -> Tensor:
        spec, scale = self.weight_spec, self._scale(weight)
        if spec.learned_scale or spec.observer != "minmax":  # such a scale may clip
            return learned_fake_quantize(weight, scale, spec.quant_min, spec.quant_max)
        return fake_quantize_weight(weight, scale)

    def _observed_scale(self, weight: Tensor) -> Tensor:
        return weight_scale(weight, self.weight_spec, self.channel_axis)

    def _scale(self, weight: Tensor) -> Tensor:
        """The observed scale, or the learned one; training starts that from the observed one."""
        learned = self.weight_scale
        if learned is None:
            return self._observed_scale(weight)
        if not self._scale_is_set:
            observed = self._observed_scale(weight)
            if not self.training:
                return started_scale(learned, observed)
            with torch.no_grad():
                learned.copy_(torch.where(learned == 0, observed, learned))
            self._scale_is_set = True
        return started_scale(learned, EPS)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A float checkpoint has no learned scales: they start anew from its weights.
        if self.weight_scale is not None and f"{prefix}weight_scale" not in state_dict:
            state_dict = {**state_dict, f"{prefix}weight_scale": torch.zeros_like(self.weight_scale)}
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._scale_is_set = False

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
        weight, factor, bias = self.weight.float(), None, self.bias
        if bn is not None:
            factor, bias = self._folding(bn)
        if self.weight_spec.per_channel or factor is None:
            integers, scale = self._integers(weight)
        else:
            integers, scale = self._integers(weight * self._along_channels(factor))
            factor = None
        if self.weight_spec.per_channel:
            scale = scale.flatten()
        if factor is not None:
            integers = integers * self._along_channels(torch.sign(factor)).to(torch.int8)
            scale = scale * factor.abs()
        return integers, scale, bias

    def _integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._observed_scale(weight)
        if self.weight_scale is not None:
            scale = started_scale(self.weight_scale.detach().to(weight.device), scale)
        return quantize_weight(weight, scale, self.weight_spec.quant_max), scale

    def extra_repr(self) -> str:
        """The float layer's, and the grid of the weight."""
        return f"{super().extra_repr()}, weight={self.weight_spec}"


def _normalize_frozen(y: Tensor, bn: _BatchNorm) -> Tensor:
    return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, training=False, eps=bn.eps)


def _away_from_zero(factor: Tensor) -> Tensor:
    """A channel whose BatchNorm weight is 0 still has to learn; 1e-12 instead is 0 to everything downstream."""
    return torch.where(factor.abs() < 1e-12, factor + 1e-12, factor)


def _kind(layer: QATLayer) -> str:
    return type(layer).__name__.removeprefix("QAT")
