"""How much of a model's work runs in int8, counted apart from the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.zoo.entry import Inputs

_PRODUCTS = ("aten.convolution", "aten.addmm", "aten.mm", "aten._convolution")


def total_work(model: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates of convolutions and linear maps in one call; attention's two products do not count."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*example[0], **example[1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(count for product, count in counts.items() if str(product).startswith(_PRODUCTS)) // 2


def work_of_layers(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-accumulates of every convolution and linear layer that is called as a module, by name."""
    work: dict[str, int] = {}

    def count(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        positions = inputs[0].numel() if transposed else output.numel()
        work[name] = work.get(name, 0) + positions * layer.weight[0].numel()

    def listen(name: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(lambda _, inputs, output: count(name, layer, inputs, output))

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    handles = [listen(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            model.eval()(*example[0], **example[1])
    finally:
        for handle in handles:
            handle.remove()
    return work


def share_in_int8(plan: Any, model: nn.Module, example: Inputs) -> float | None:
    """The share that the plan says, or else that of the layers that it lists as quantized.

    Args:
        plan: from :func:`lq.plan_of`.
        model: the float model.
        example: inputs of one call.

    Returns:
        a number from 0 to 1; ``None`` for a model without such work.
    """
    for name in ("int8_share", "share_int8", "share_in_int8"):
        said = getattr(plan, name, None)
        if said is not None:
            return float(said() if callable(said) else said)
    total = total_work(model, example)
    layers = work_of_layers(model, example)
    return sum(layers.get(row.name, 0) for row in plan.quantized) / total if total else None
