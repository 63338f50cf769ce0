"""The vendor's own flow: torchao's graph with a quantizer's observers, which all round by one formula."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e


class Rounds(nn.Module):
    """In the place of an observer: finds the range of all that it sees at first, and then rounds.

    Args:
        observer: gives integers and scheme.
        of_weight: whether it is that of a weight, whose integers are symmetric in lq.
    """

    def __init__(self, observer: nn.Module, of_weight: bool) -> None:
        super().__init__()
        inner: Any = getattr(observer, "activation_post_process", observer)
        limits = torch.iinfo(inner.dtype)
        self.low = limits.min if inner.quant_min is None else int(inner.quant_min)
        self.high = limits.max if inner.quant_max is None else int(inner.quant_max)
        self.is_bias = self.high - self.low > 1 << 16
        self.symmetric = inner.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        if self.symmetric and of_weight:
            self.high = min(-self.low, self.high)
            self.low = -self.high
        elif self.symmetric and self.low == 0:
            self.low, self.high = -128, 127
        self.axis = inner.ch_axis if inner.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine) else None
        self.ends: tuple[Tensor, Tensor] | None = None
        self.rounds = False

    def forward(self, x: Tensor) -> Tensor:
        if self.is_bias:
            return x
        if not self.rounds:
            axes = [axis for axis in range(x.dim()) if axis != self.axis]
            low, high = x.amin(axes, keepdim=True).clamp(max=0), x.amax(axes, keepdim=True).clamp(min=0)
            if self.ends is not None:
                low, high = torch.minimum(low, self.ends[0].min()), torch.maximum(high, self.ends[1].max())
            self.ends = low, high
            return x
        assert self.ends is not None
        low, high = (end.flatten() if self.axis is None else end for end in self.ends)
        if self.symmetric:
            scale, zero = torch.maximum(low / self.low, high / self.high), torch.zeros(())
        else:
            scale = (high - low) / (self.high - self.low)
            zero = self.low - torch.round(low / scale)
        return (torch.clamp(torch.round(x / scale) + zero, self.low, self.high) - zero) * scale


def torchao_flow(net: nn.Module, x: Tensor, quantizer: Any, qat: bool) -> tuple[fx.GraphModule, list[Rounds]]:
    """The exported model in evaluation mode with what the quantizer puts in.

    Args:
        net: left as it is.
        x: its input.
        quantizer: of a vendor.
        qat: whether BatchNorm is there while the quantizer annotates, or folded before.
    """
    exported = torch.export.export(copy.deepcopy(net).train(qat), (x,), strict=True).module(check_guards=False)
    theirs: Any = (prepare_qat_pt2e if qat else prepare_pt2e)(exported, quantizer)
    if qat:
        move_exported_model_to_eval(theirs)
    observers = dict(theirs.named_modules(remove_duplicate=False))
    new: dict[int, Rounds] = {}
    for node in theirs.graph.nodes:
        if node.op == "call_module" and hasattr(observers[node.target], "calculate_qparams"):
            observer = observers[node.target]
            of_weight = all(user.args[1:2] == (node,) and "Tensor" not in str(user.target) for user in node.users)
            setattr(theirs, node.target, new.setdefault(id(observer), Rounds(observer, of_weight)))
    theirs.recompile()
    return theirs, list(new.values())
