"""How long the parts of fake quantization take: one activation against ReLU6, weight scales against a loop.

python -m benchmarks.ops --rounds 50 --json ops.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._common import TIMING_COLUMNS, Row, Work, compare, label, parse, parser, report
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core import native
from lq.core.fake_quantize import FakeQuantize
from lq.core.functional import EPS, affine_qparams, fake_quantize
from lq.core.scratch import Scratch
from lq.core.state import QATState
from lq.core.weight import Covering, fake_quantize_weight, weight_scale

COLUMNS = (label("group", "what"), label("op", "by"), *TIMING_COLUMNS)
_LOOP = "loop over channels"
_WEIGHT = WeightSpec(-127, 127)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure everything and print the table."""
    options = parse(_options(), arguments)
    device = torch.device(options.device)
    rows = _rows(f"{_shape(options.activation)}, forward + backward", _activations(options.activation, device), options)
    for shape in options.weights:
        weight = torch.randn(*shape, device=device)
        rows += _rows(f"{_shape(shape)}, qparams from min and max", _qparams(weight), options)
        rows += _rows(f"{_shape(shape)}, scales", _scales(weight), options)
        rows += _rows(f"{_shape(shape)}, scales + fake quantize", _fake_quantized(weight), options)
    report("Operations; the ratio is to the first line of each group", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Time of fake quantization against ReLU6 and against a loop over channels.", rounds=20)
    options.add_argument("--activation", type=_dims, default="16x96x48x48", help="shape (default: 16x96x48x48)")
    weights = ["512x512x3x3", "512x64"]
    options.add_argument(
        "--weights", type=_dims, nargs="+", default=list(map(_dims, weights)), help="shapes of weights"
    )
    return options


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def _shape(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))


def _rows(group: str, works: dict[str, Work], options: argparse.Namespace) -> list[Row]:
    first = next(iter(works))
    timings = compare(works, dict.fromkeys(works, first), options)
    return [{"group": group, "op": op, **timing.row()} for op, timing in timings.items()]


# ---- one activation ---------------------------------------------------------------------------------------------


def _activations(shape: Sequence[int], device: torch.device) -> dict[str, Work]:
    x = torch.randn(*shape, device=device) * 3
    grad = torch.randn_like(x)
    ops: dict[str, Callable[[Tensor], Tensor]] = {
        "ReLU6": F.relu6,
        "torch.fake_quantize": _torch_fake_quantize(device),
        "stock fused module": _stock_fused().to(device),
        "lq function": _lq_function(device),
        "lq module, observers off": lq_module(observer=False, x=x),
        "lq module, observers on": lq_module(observer=True, x=x),
        "lq module, observers on, without C": _without_c(lq_module(observer=True, x=x)),
    }
    return {name: partial(_forward_backward, op, x.clone().requires_grad_(), grad) for name, op in ops.items()}


def _without_c(op: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def work(x: Tensor) -> Tensor:
        with native.off():
            return op(x)

    return work


def _forward_backward(op: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(op(x), x, grad)[0]


def _torch_fake_quantize(device: torch.device) -> Callable[[Tensor], Tensor]:
    scale, zero_point = torch.tensor(6 / 255, device=device), torch.tensor(0, dtype=torch.int32, device=device)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


def _stock_fused() -> nn.Module:
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver

    return FusedMovingAvgObsFakeQuantize(MovingAverageMinMaxObserver, 0, 255)


def _lq_function(device: torch.device) -> Callable[[Tensor], Tensor]:
    # As the modules do: floats on a CPU, where reading them costs nothing, tensors elsewhere.
    grid = 6 / 255, 0.0, 255.0
    scale, low, high = grid if device.type == "cpu" else torch.tensor(grid, device=device).unbind()
    return lambda x: fake_quantize(x, scale, low, high)


def lq_module(observer: bool, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A fake quantizer that has absorbed a ReLU6, with the update of the ranges that a model does once a step."""
    state = QATState(["x"], [ActivationSpec()], ["relu6"]).to(x.device)
    module = FakeQuantize(state, 0)
    state.fake_quant = state.observer = True
    state(module(x))
    state.observer = observer

    def step(x: Tensor) -> Tensor:
        out: Tensor = state(module(x))
        return out

    return step


# ---- weights, per channel ---------------------------------------------------------------------------------------


def _qparams(weight: Tensor) -> dict[str, Work]:
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    return {_LOOP: partial(_looped_qparams, low, high), "lq": partial(affine_qparams, low, high, -127, 127, True)}


def _looped_qparams(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    pairs = [affine_qparams(a, b, -127, 127, True) for a, b in zip(low, high, strict=True)]
    return torch.stack([scale for scale, _ in pairs]), torch.stack([zero_point for _, zero_point in pairs])


def _scales(weight: Tensor) -> dict[str, Work]:
    return {_LOOP: partial(_looped_scales, weight), "lq": partial(weight_scale, weight, _WEIGHT)}


def _looped_scales(weight: Tensor) -> Tensor:
    scales = [torch.maximum(-row.min(), row.max()) / 127 for row in weight]
    return torch.stack(scales).clamp(min=EPS)


def _fake_quantized(weight: Tensor) -> dict[str, Work]:
    return {
        _LOOP: partial(_looped_fake_quantize, weight),
        "stock fused module": partial(_stock_fused_per_channel(weight), weight),
        "lq": lambda: fake_quantize_weight(weight, Covering(_WEIGHT)),
        "lq, the scale in a pass of its own": lambda: fake_quantize_weight(weight, weight_scale(weight, _WEIGHT)),
        "lq, without C": lambda: _without_c(lambda w: fake_quantize_weight(w, Covering(_WEIGHT)))(weight),
        "lq, with its backward pass, memory used again": _lq_with_backward(weight),
    }


def _looped_fake_quantize(weight: Tensor) -> Tensor:
    scales = _looped_scales(weight)
    return torch.stack([torch.round(row / scale) * scale for row, scale in zip(weight, scales, strict=True)])


def _stock_fused_per_channel(weight: Tensor) -> nn.Module:
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver

    scheme = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "averaging_constant": 1.0}
    module = FusedMovingAvgObsFakeQuantize(MovingAveragePerChannelMinMaxObserver, -128, 127, **scheme)
    return module.to(weight.device)


def _lq_with_backward(weight: Tensor) -> Work:
    """As in training; the backward pass hands the gradient on as it is, and the memory back."""
    weight, grad, scratch = weight.clone().requires_grad_(), torch.ones_like(weight), Scratch()

    def work() -> Tensor:
        out = fake_quantize_weight(weight, Covering(_WEIGHT), scratch=scratch)
        return torch.autograd.grad(out, weight, grad)[0]

    return work


if __name__ == "__main__":
    main()
