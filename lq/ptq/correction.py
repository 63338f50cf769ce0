"""What post-training quantization can mend without training: BatchNorm statistics and biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lq.backends.prepare import set_phase
from lq.console import BatchCounter
from lq.core.modules import QATLayer
from lq.ptq.batches import Call, run_batch
from lq.ptq.switch import quantize_only
from lq.tracing import ops


@torch.no_grad()
def reestimate_batch_norm(prepared: fx.GraphModule, batches: Iterable[Any], call: Call | None = None) -> int:
    """Measure the mean and variance of every BatchNorm anew, behind quantized weights; do it before ``calibrate``.

    Each statistic becomes the plain average over the batches.

    Args:
        prepared: from :func:`lq.prepare`; its BatchNorms, which it shares with the float model, are changed.
        batches: data, to be gone through once; batches of some size, or the variances are poor.
        call: as in :func:`lq.calibrate`.

    Returns:
        number of BatchNorms.

    Source:
        Sun et al., "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks" (NeurIPS 2019).

    Example:
        >>> from lq.backends.prepare import prepare
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)))
        >>> reestimate_batch_norm(prepared, [torch.randn(32, 4) + 5])
        1
    """
    norms = [m for m in prepared.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    prepared.eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for part in prepared.modules():
        if isinstance(part, (_BatchNorm, QATLayer)):
            part.train()
    try:
        with BatchCounter("lq: BatchNorm statistics") as counter:
            for batch in batches:
                (call or run_batch)(prepared, batch)
                counter.advance()
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:  # it never ran: what it knew is better than nothing
                norm.load_state_dict(state)
        prepared.eval()
    return len(norms)


@torch.no_grad()
def correct_bias(prepared: fx.GraphModule, batches: Iterable[Any], call: Call | None = None) -> dict[str, float]:
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
    modules = dict(prepared.named_modules())
    calls = {
        str(node.target): node for node in prepared.graph.nodes if isinstance(ops.module_of(node, modules), QATLayer)
    }
    shifts = {name: _Shift(cast(QATLayer, modules[name]), _norm_of(prepared, node)) for name, node in calls.items()}
    hooks = [shift.layer.register_forward_hook(shift.hear) for shift in shifts.values()]
    prepared.eval()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    try:
        with BatchCounter("lq: correcting biases") as counter:
            for number, batch in enumerate(batches, start=1):
                _both_ways(prepared, list(shifts.values()), number, partial(call or run_batch, prepared, batch))
                counter.advance()
    finally:
        for hook in hooks:
            hook.remove()
    for shift in shifts.values():
        shift.apply()
    return {name: float(shift.value.abs().max()) for name, shift in shifts.items() if shift.value is not None}


def _both_ways(prepared: fx.GraphModule, shifts: list[_Shift], number: int, run: Callable[[], Any]) -> None:
    for shift in shifts:
        shift.begin(number, exact=True)
    with quantize_only(prepared, []):
        run()
    for shift in shifts:
        shift.begin(number, exact=False)
    run()


class _Shift:
    """How far the mean output of a layer is off, in each channel; taken away while the batches run."""

    def __init__(self, layer: QATLayer, norm: _BatchNorm | None) -> None:
        self.layer, self.norm = layer, norm
        self.value: Tensor | None = None
        self._means: list[Tensor] = []
        self._number, self._exact, self._call = 1, True, 0

    def begin(self, number: int, exact: bool) -> None:
        """The next run is of the float model, or of the one with rounded weights."""
        self._number, self._exact, self._call = number, exact, 0
        if exact:
            self._means = []

    def hear(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Note the means of the float run; correct the output of the other one."""
        if output.numel() == 0:
            return None
        axis = output.dim() - 1 if self.layer.weight.dim() == 2 else 1
        mean = output.float().mean([d for d in range(output.dim()) if d != axis])
        if self._exact:
            self._means.append(mean)
            return None
        known = torch.zeros_like(mean) if self.value is None else self.value
        # Each batch moves the average by what is still wrong on it.
        if self._call == 0:
            self.value = known + (mean - known - self._means[0]) / self._number
        self._call += 1
        shape = [-1 if d == axis else 1 for d in range(output.dim())]
        return output - cast(Tensor, self.value).reshape(shape).to(output.dtype)

    def apply(self) -> None:
        """Move the correction into the bias."""
        if self.value is not None:
            _subtract(self.layer, self.norm, self.value)


def _norm_of(prepared: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    if len(node.args) < 2:
        return None
    return cast(_BatchNorm, prepared.get_submodule(str(cast(fx.Node, node.args[1]).target)))


@torch.no_grad()
def folded_weights(layer: QATLayer, norm: _BatchNorm | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weight that a layer has in float, the one that int8 gives it, and the bias, BatchNorm folded into all.

    Args:
        layer: of a prepared model.
        norm: the BatchNorm behind it, if any.

    Returns:
        two float32 tensors of the weight's shape, and the bias of shape (channels,) or None.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> layer = prepare(nn.Sequential(nn.Linear(4, 2))).get_submodule("0")
        >>> exact, rounded, bias = folded_weights(layer, None)
        >>> bool((exact - rounded).abs().max() < exact.abs().max() / 63)
        True
    """
    integers, scale, bias = layer.integer_weight(norm)
    exact = layer.weight.float()
    if norm is not None:
        factor, _ = layer._folding(norm)
        exact = exact * layer._along_channels(factor)
    shaped = scale if scale.dim() == 0 else layer._along_channels(scale)
    return exact, integers.float() * shaped, bias


def _subtract(layer: QATLayer, norm: _BatchNorm | None, error: Tensor) -> None:
    if norm is not None and not norm.affine:
        assert norm.running_mean is not None
        factor, _ = layer._folding(norm)
        norm.running_mean.add_((error / factor).to(norm.running_mean.dtype))
        return
    holder: nn.Module = layer if norm is None else norm
    bias = holder.bias
    if isinstance(bias, Tensor):
        bias.sub_(error.to(bias.dtype))
    else:
        holder.bias = nn.Parameter(-error.to(layer.weight.dtype))
