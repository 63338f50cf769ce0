"""How much of a model's work runs in int8, counted apart from the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.zoo.entry import Inputs

_PRODUCTS = ("aten::convolution", "aten::addmm", "aten::mm", "aten::_convolution")


class _Counter(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in _PRODUCTS:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        return out


def total_work(model: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates of convolutions and linear maps in one call; attention's two products do not count."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Counter() as counter:
            model.eval()(*example[0], **example[1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.total


def share_in_int8(plan: Any, model: nn.Module, example: Inputs) -> float | None:
    """The work of the layers that the plan lists as quantized, as a share of all that was counted apart from it.

    Args:
        plan: from :func:`lq.plan_of`.
        model: the float model.
        example: inputs of one call.

    Returns:
        a number from 0 to 1; ``None`` for a model without such work, or with recurrent layers, whose work this count
        does not see.
    """
    if any(isinstance(part, (nn.RNNBase, nn.RNNCellBase)) for part in model.modules()):
        return None
    total = total_work(model, example)
    return min(1.0, sum(row.work for row in plan.quantized) / total) if total else None
