"""Counts at the fake quantizers of a model that runs anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from lq.analysis.tensors import QuantizedTensor, tensors_of
from lq.backends.prepare import state_of
from lq.core.qparams import ACTIVATIONS


class RangeRow(TypedDict):
    """One tensor.

    Args:
        name: the layer, or the operation behind which it stands.
        kind: "weight" or "activation".
        low: lowest value that the grid holds, in the unit of the tensor; of weights, of the widest channel.
        high: highest value.
        scale: step of the grid; of weights, the largest of all channels.
        levels: integers that the grid has.
        used_levels: integers that occur.
        saturated: share of the values beyond the grid, in [0, 1].
        dead: of weights, channels in which every integer is 0; of activations, 1 if only one integer occurs.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(1, 1)), [torch.tensor([[0.0], [1.0]])])
        >>> listener = RangeListener(prepared)
        >>> _ = prepared(torch.tensor([[0.0], [0.5], [1.0], [2.0]]))
        >>> row = listener.rows()[0]
        >>> row["name"], row["levels"], row["used_levels"], row["saturated"]
        ('input_1', 256, 3, 0.25)
    """

    name: str
    kind: str
    low: float
    high: float
    scale: float
    levels: int
    used_levels: int
    saturated: float
    dead: int


class RangeListener:
    """Counts what passes the fake quantizers of a prepared model while it runs.

    It waits for a device at the first batch, for the ends of the grids, and for ``rows``.

    Args:
        prepared: with ranges that stay as they are while it listens; quantizers without one are left out.
        limit: values of each tensor and call to count, spread over it; None counts all, which for large activations
            takes several times their memory.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.linspace(-1, 1, 64).reshape(16, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> listener = RangeListener(prepared)
        >>> _ = prepared(x)
        >>> listener.remove()
        >>> [row["name"] for row in listener.rows()]
        ['input_1', '0']
    """

    def __init__(self, prepared: nn.Module, limit: int | None = None) -> None:
        state = state_of(prepared)
        tensors = [tensor for tensor in tensors_of(prepared) if state.ready(tensor.quantizer.slot)]
        self._counts = [_Count(tensor, limit) for tensor in tensors]
        self._hooks = [c.tensor.quantizer.register_forward_pre_hook(_counting(c)) for c in self._counts]

    def remove(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def rows(self) -> list[RangeRow]:
        """A row per activation, in execution order."""
        return [count.row() for count in self._counts]


class _Count:
    """Integers that occurred, and how many values lay beyond them."""

    def __init__(self, tensor: QuantizedTensor, limit: int | None) -> None:
        self.tensor, self.limit = tensor, limit
        self.scale, self.low, self.high = tensor.grid
        device = tensor.quantizer.__dict__["state"].min_val.device
        self.occurred = torch.zeros(int(self.high - self.low) + 1, dtype=torch.bool, device=device)
        self.beyond, self.total = torch.zeros((), dtype=torch.int64, device=device), 0

    def add(self, x: Tensor) -> None:
        x = _some(x, self.limit)
        integers = torch.clamp(x.float(), *ACTIVATIONS[self.tensor.quantizer.activation]).div(self.scale).round_()
        inside = integers.nan_to_num(0.0).clamp(self.low, self.high)  # NaN, which is no index, counts as beyond
        self.beyond = self.beyond + (inside != integers).sum()
        self.total += x.numel()
        self.occurred[(inside - self.low).long().flatten()] = True

    def row(self) -> RangeRow:
        spec = self.tensor.quantizer.__dict__["state"].specs[self.tensor.quantizer.slot]
        used = int(self.occurred.sum())
        return RangeRow(
            name=self.tensor.name,
            kind="activation",
            low=self.low * self.scale,
            high=self.high * self.scale,
            scale=self.scale,
            levels=spec.quant_max - spec.quant_min + 1,
            used_levels=used,
            saturated=int(self.beyond) / max(self.total, 1),
            dead=int(used <= 1),
        )


def _some(x: Tensor, limit: int | None) -> Tensor:
    """At most about ``limit`` values from all over a tensor, without a copy of it if its memory has no gaps."""
    if limit is None or x.numel() <= limit:
        return x
    stride = (x.numel() // limit) | 1  # odd, not to stay in the same channels
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    x = x if dense else x.contiguous()
    return x.as_strided((x.numel() // stride,), (stride,))


def _counting(count: _Count) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: count.add(args[0])
