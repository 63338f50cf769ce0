"""The module that stands for the quantization of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lq.core.functional import fake_quantize
from lq.core.lsq import LearnedScale, learned_fake_quantize
from lq.core.marks import activate
from lq.core.saving import current
from lq.core.state import QATState


class FakeQuantize(nn.Module):
    """Quantizes and dequantizes one activation, with a ReLU or ReLU6 absorbed by its clamp.

    Its range is a slot of the model's :class:`~lq.core.state.QATState`, which several may share. With fake
    quantization off, or before the slot has seen a batch, it is just the activation function that it absorbed. A
    learned scale is a submodule, ``learned_scale``; the zero point stays with the observer.

    Args:
        state: the model's quantization state.
        slot: index into it.

    Example:
        >>> from lq.config.specs import ActivationSpec
        >>> state = QATState(["relu"], [ActivationSpec(0, 3, fixed_range=(0.0, 6.0))], ["relu"])
        >>> quantizer = FakeQuantize(state, 0)
        >>> quantizer(torch.tensor([-3.0, 2.9, 7.0]))
        tensor([0.0000, 2.9000, 7.0000])
        >>> state.fake_quant = True
        >>> quantizer(torch.tensor([-3.0, 2.9, 7.0])), quantizer.scale
        (tensor([0., 2., 6.]), tensor(2.))
    """

    state: QATState

    def __init__(self, state: QATState, slot: int) -> None:
        super().__init__()
        # Not registered as a child: the state is its parent.
        self.__dict__["state"] = state
        self.slot = slot
        self.learned_scale = LearnedScale(torch.zeros(())) if state.specs[slot].learned_scale else None

    @property
    def scale(self) -> Tensor:
        """The step of the grid, learned or observed: float32 of shape (), without a gradient."""
        observed = torch.as_tensor(self.state.slot_qparams(self.slot)[0], dtype=torch.float32)
        return observed if self.learned_scale is None else self.learned_scale(observed).detach()

    @property
    def activation(self) -> str:
        """The absorbed activation: "none", "relu" or "relu6"."""
        return self.state.activations[self.slot]

    def forward(self, x: Tensor, owned: bool = False, recomputing: bool = False) -> Tensor:
        """``x`` on the grid.

        Args:
            x: floating tensor, any shape.
            owned: whether nobody else needs ``x``, so that it can be overwritten.
            recomputing: whether this was computed before, and has been observed then.
        """
        state, slot = self.state, self.slot
        saving = current() if state.fake_quant else None
        # Without a range the grid is that of all floats, and one of 16 bits has no place in a byte.
        if saving is not None and not (state.ready(slot) and state.specs[slot].bits <= 8):
            saving = None
        ends = None
        if self.training and state.observer and not recomputing and x.numel() > 0:
            if state.fake_quant and self.learned_scale is None:
                ends = state.ends_to_fill(slot, x)
            if ends is None:
                state.observe(slot, x)
        if not state.fake_quant:
            return activate(x, self.activation)
        scale, low, high = state.slot_qparams(slot)
        if self.learned_scale is not None:
            return learned_fake_quantize(x, self.learned_scale(scale), low, high)
        out = fake_quantize(x, scale, low, high, owned, saving, state.rounding(slot, x.dtype), ends)
        if ends is not None:
            state.note(slot, ends)
        return out

    def extra_repr(self) -> str:
        """Grid and absorbed activation."""
        return f"{self.state.specs[self.slot]}, activation={self.activation}"
