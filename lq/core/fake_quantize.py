"""The module that stands for the quantization of one tensor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lq.core.functional import fake_quantize
from lq.core.state import QATState


class FakeQuantize(nn.Module):
    """Quantizes and dequantizes one activation, with a ReLU or ReLU6 absorbed by its clamp.

    It owns no tensors: its range is a slot of the model's :class:`~lq.core.state.QATState`. With fake quantization off,
    or before the slot has seen a batch, it is just the activation function that it absorbed.

    Args:
        state: the model's quantization state.
        slot: index into it.
        inplace: whether the absorbed activation worked in place.
        owns_input: whether nobody else needs the input, so that it can be overwritten.
    """

    def __init__(self, state: QATState, slot: int, inplace: bool = False, owns_input: bool = False) -> None:
        super().__init__()
        # Not registered as a child: the state is its parent.
        self.__dict__["state"] = state
        self.slot, self.inplace, self.owns_input = slot, inplace, owns_input

    @property
    def activation(self) -> str:
        """The absorbed activation: "none", "relu" or "relu6"."""
        state: QATState = self.__dict__["state"]
        return state.activations[self.slot]

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid, any shape."""
        state: QATState = self.__dict__["state"]
        observing = state.observer and self.training and x.numel() > 0
        if observing:
            scale, low, high = state.observe(self.slot, x)
        elif not state.fake_quant or not state.ready(self.slot):
            return self._activate(x)
        else:
            scale, low, high = state.qparams()[self.slot]
        return fake_quantize(x, scale, low, high, self.owns_input) if state.fake_quant else self._activate(x)

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(x, self.inplace)
        if self.activation == "relu6":
            return F.relu6(x, self.inplace)
        return x

    def extra_repr(self) -> str:
        """Grid and absorbed activation."""
        state: QATState = self.__dict__["state"]
        return f"{state.specs[self.slot]}, activation={self.activation}"


class TrainingFlag(nn.Module):
    """Gives its own ``training`` flag: stands in a graph where the traced code read ``self.training``."""

    def forward(self) -> bool:
        """The flag."""
        return self.training


class ModeSwitch(nn.Module):
    """Gives its first argument in training and its second in evaluation, for models that return more in training."""

    def forward(self, train_output: object, eval_output: object) -> object:
        """One of the two."""
        return train_output if self.training else eval_output
