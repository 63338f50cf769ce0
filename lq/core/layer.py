"""A layer with a quantized weight as a module of a graph, alone or with the BatchNorm behind it."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lq.compat.torch_private import BatchNorm
from lq.config.specs import WeightSpec
from lq.core.folding import fold_batch_norm, folding_pays, normalize_frozen
from lq.core.lsq import LearnedScale
from lq.core.state import QATState
from lq.core.weight_quantizer import WeightQuantizer, along_channels


class QATLayer(nn.Module):
    """What the QAT layers share; each also is the float layer that it stands for, with the same parameters and keys.

    Example:
        >>> from lq.core.modules import QATLinear
        >>> linear, state = nn.Linear(2, 1, bias=False), QATState([], [], [])
        >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, -0.25]]))
        >>> layer = QATLinear.from_float(linear, WeightSpec(-1, 1), state)
        >>> state.fake_quant = True
        >>> linear(torch.ones(1, 2)).item(), layer(torch.ones(1, 2)).item()
        (0.75, 1.0)
    """

    state: QATState
    weight: Tensor
    bias: Tensor | None
    weight_spec: WeightSpec
    learned_scale: LearnedScale | None
    quantizer: WeightQuantizer
    channel_axis = 0

    @classmethod
    def from_float(cls, module: nn.Module, spec: WeightSpec, state: QATState) -> QATLayer:
        """The QAT twin of ``module``; parameters are shared, not copied.

        A learned scale is a submodule of it, ``learned_scale``.
        """
        twin = cls.__new__(cls)
        twin.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = copy.copy(module.__dict__[name])
        twin.__dict__["state"] = state  # not registered as a child
        quantizer = WeightQuantizer(spec, twin.channel_axis, twin.weight)
        twin.weight_spec = spec
        twin.share_quantizer(quantizer)
        return twin

    def share_quantizer(self, quantizer: WeightQuantizer) -> None:
        """Take what rounds the weight, with its learned scale if it has one."""
        self.__dict__["quantizer"] = quantizer  # not a child: its scale is one here
        self._modules.pop("learned_scale", None)
        self.add_module("learned_scale", quantizer.learned_scale)

    @property
    def weight_scale(self) -> Tensor:
        """The scale of the weight as it is, learned or observed: float32 that broadcasts against it."""
        return self.quantizer.scale(self.weight).detach()

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another weight and bias, which are not rounded here."""
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
            plain = self.compute(x, self.weight, self.bias)
            return plain if bn is None else bn(plain)
        if bn is None:
            return self.compute(x, self._quantized(), self.bias)
        norm = cast(BatchNorm, bn)
        # Evaluation does not ask for the phase, or torch.compile would compile it for each.
        if not self.training or (self.state.freeze_bn and folding_pays(x, self.weight)):
            factor, bias = self.folding(norm)
            return self.compute(x, self._quantized(factor, fold=True), bias.to(self.weight.dtype))
        grid_factor = None if self.weight_spec.per_channel else self.folding(norm)[0]
        y = self.compute(x, self._quantized(grid_factor), self.bias)
        return normalize_frozen(norm, y) if self.state.freeze_bn else cast(Tensor, bn(y))

    def _quantized(self, factor: Tensor | None = None, fold: bool = False) -> Tensor:
        """The weight on its grid; as :meth:`WeightQuantizer.quantized`."""
        return self.quantizer.quantized(self.weight, self.training, factor, fold)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.quantizer.forget()

    def folding(self, bn: BatchNorm) -> tuple[Tensor, Tensor]:
        """What weight and bias become with ``bn`` folded in: a factor per channel and the new bias, in float32."""
        return fold_batch_norm(bn, self.bias)

    def along_channels(self, vector: Tensor) -> Tensor:
        """A value for each output channel, in a shape that broadcasts against the weight."""
        return along_channels(vector, self.weight, self.channel_axis)

    @torch.no_grad()
    def integer_weight(self, bn: BatchNorm | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the int8 model computes with.

        Returns:
            ``(integers, scale, bias)``: int8 of the weight's shape, float32 of shape (channels,) or () per tensor, and
            the float bias, BatchNorm folded into all three.
        """
        weight, factor, bias = self.weight.float(), None, self.bias
        if bn is not None:
            factor, bias = self.folding(bn)
        if self.weight_spec.per_channel or factor is None:
            integers, scale = self.quantizer.integers(weight)
        else:
            integers, scale = self.quantizer.integers(weight * self.along_channels(factor))
            factor = None
        if self.weight_spec.per_channel:
            scale = scale.flatten()
        if factor is not None:
            integers = integers * self.along_channels(torch.sign(factor)).to(torch.int8)
            scale = scale * factor.abs()
        return integers, scale, bias

    def extra_repr(self) -> str:
        """The float layer's, and the grid of the weight."""
        return f"{super().extra_repr()}, weight={self.weight_spec}"


def _kind(layer: QATLayer) -> str:
    return type(layer).__name__.removeprefix("QAT")
