"""Biases that make up for the mean error of rounded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import set_phase
from lq.console import BatchCounter
from lq.ptq.batches import RunBatch, run_batch
from lq.ptq.layers import QuantizedLayer, layers_of, outputs_of
from lq.ptq.switch import all_in_float


@torch.no_grad()
def correct_bias(prepared: nn.Module, batches: Iterable[Any], call: RunBatch | None = None) -> dict[str, float]:
    r"""Take the mean error that rounded weights make out of every layer's output, layer by layer.

    .. math:: b \leftarrow b - \mathbb{E}[\hat y - y]

    per output channel, BatchNorm included; :math:`y` from the float model, :math:`\hat y` from the one with rounded
    weights, in which all layers before this one are corrected already. The expectation is the average over the
    batches.

    Args:
        prepared: from :func:`lq.prepare`; biases (those of the BatchNorm, where there is one) are changed.
        batches: data, to be gone through once.
        call: as in :func:`lq.calibrate`.

    Returns:
        largest correction of each layer, in the unit of its output.

    Source:
        Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction",
        https://arxiv.org/abs/1906.04721, appendix D (empirical bias correction).

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)))
        >>> sorted(correct_bias(prepared, [torch.randn(32, 4) + 5]))
        ['0', '2']
    """
    shifts = {layer.name: _Shift(layer) for layer in layers_of(prepared)}
    prepared.eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    hears = {name: shift.hear for name, shift in shifts.items()}
    with outputs_of(prepared, hears), BatchCounter("lq: correcting biases") as counter:
        for number, batch in enumerate(batches, start=1):
            _both_ways(prepared, list(shifts.values()), number, partial(call or run_batch, prepared, batch))
            counter.advance()
    for shift in shifts.values():
        shift.apply(prepared)
    return {name: float(shift.value.abs().max()) for name, shift in shifts.items() if shift.value is not None}


def _both_ways(prepared: nn.Module, shifts: list[_Shift], number: int, run: Callable[[], Any]) -> None:
    for shift in shifts:
        shift.begin(number, exact=True)
    with all_in_float(prepared):
        run()
    for shift in shifts:
        shift.begin(number, exact=False)
    run()


class _Shift:
    """How far the mean output of a layer is off, in each channel; taken away while the batches run."""

    def __init__(self, layer: QuantizedLayer) -> None:
        self.layer = layer
        self.value: Tensor | None = None
        self._wanted: Tensor | None = None
        self._number, self._exact, self._call = 1, True, 0

    def begin(self, number: int, exact: bool) -> None:
        """The next run is of the float model, or of the one with rounded weights."""
        self._number, self._exact, self._call = number, exact, 0
        if exact:
            self._wanted = None

    def hear(self, output: Tensor) -> Tensor:
        """Note the mean of the first call in the float run; correct the output of the other one."""
        if output.numel() == 0:
            return output
        # Counted from behind, as an image may come without a batch.
        axis = output.dim() - (self.layer.module.weight.dim() - 1)
        mean = output.float().mean([d for d in range(output.dim()) if d != axis])
        if self._exact:
            self._wanted = mean if self._wanted is None else self._wanted
            return output
        known = torch.zeros_like(mean) if self.value is None else self.value
        # Each batch moves the average by what is still wrong on it.
        if self._call == 0:
            self.value = known + (mean - known - cast(Tensor, self._wanted)) / self._number
        self._call += 1
        shape = [-1 if d == axis else 1 for d in range(output.dim())]
        return output - cast(Tensor, self.value).reshape(shape).to(output.dtype)

    def apply(self, prepared: nn.Module) -> None:
        """Move the correction into the bias."""
        if self.value is not None:
            _subtract(prepared, self.layer, self.value)


def _subtract(prepared: nn.Module, layer: QuantizedLayer, error: Tensor) -> None:
    norm = layer.norm
    if norm is not None and not norm.affine:
        assert norm.running_mean is not None
        factor, _ = layer.module.folding(norm)
        norm.running_mean.add_((error / factor).to(norm.running_mean.dtype))
        return
    holder: nn.Module = layer.module if norm is None else norm
    bias = holder.bias
    if isinstance(bias, Tensor):
        bias.sub_(error.to(bias.dtype))
        return
    bias = nn.Parameter(-error.to(layer.module.weight.dtype))
    owner = holder if isinstance(prepared, fx.GraphModule) else prepared.get_submodule(layer.name)
    owner.bias = bias
