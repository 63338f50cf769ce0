"""How calls of torch's Python API are made from the arguments of ATen operations; :mod:`lq.tracing.aten` lists them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

Named = dict[str, Any]


class Call(NamedTuple):
    """The call that a node of a graph makes; a ``target`` of ``None`` passes its first argument on."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}

    @property
    def op(self) -> str:
        """As :class:`torch.fx.Node` has it."""
        return "call_method" if isinstance(self.target, str) else "call_function"


def same(function: Any, *names: str, **keywords: str) -> Callable[[Named], Call]:
    """``function`` called with the named arguments: by position, and those of ``keywords`` by that name."""
    return lambda a: Call(function, tuple(a[n] for n in names), {k: a[n] for k, n in keywords.items()})


def first(a: Named) -> Call:
    """Its first argument, unchanged."""
    return Call(None, (next(iter(a.values())),))


def arithmetic(function: Any) -> Callable[[Named], Call | None]:
    """An operator of Python, unless the second argument is multiplied by something (``alpha``)."""
    return lambda a: Call(function, (a["self"], a["other"])) if a.get("alpha", 1) == 1 else None


def hardtanh(a: Named) -> Call:
    """A ReLU6 where it is one."""
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Call(F.relu6, (a["self"],))
    return Call(F.hardtanh, (a["self"], a["min_val"], a["max_val"]))


def elu(a: Named) -> Call | None:
    """Without the scales that only SELU has."""
    return Call(F.elu, (a["self"], a["alpha"])) if a["scale"] == 1 and a["input_scale"] == 1 else None


def softmax(function: Any) -> Callable[[Named], Call]:
    """Softmax or its logarithm."""
    return lambda a: Call(function, (a["self"], a["dim"]), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def dropout(function: Any) -> Callable[[Named], Call]:
    """Nothing in evaluation."""
    return lambda a: Call(function, (a["input"], a["p"], True)) if a["train"] else first(a)


def max_pool(function: Any) -> Callable[[Named], Call]:
    """A pooling of maxima."""

    def call(a: Named) -> Call:
        names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return Call(function, tuple(a[n] if n != "stride" else a[n] or None for n in names))

    return call


def avg_pool(function: Any) -> Callable[[Named], Call]:
    """A pooling of averages."""

    def call(a: Named) -> Call:
        a = {**a, "stride": a["stride"] or None}
        return Call(function, tuple(a.values()))  # the same arguments in the same order

    return call


def mean(a: Named) -> Call:
    """The mean over all dimensions or some."""
    # Of no dimensions torch.mean makes all, but it takes no ``None`` beside ``keepdim``.
    dims = (a["dim"] or [], a["keepdim"]) if a.get("dim") or a.get("keepdim") else ()
    return Call(torch.mean, (a["self"], *dims), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def slice_of(a: Named) -> Call | None:
    """An index; nothing if it takes all."""
    if not isinstance(a["dim"], int) or a["dim"] < 0:
        return None
    start, end = a["start"] or None, a["end"]
    end = None if isinstance(end, int) and end >= 2**62 else end
    step = None if a["step"] == 1 else a["step"]
    if (start, end, step) == (None, None, None):
        return first(a)
    return Call(operator.getitem, (a["self"], (*[slice(None)] * a["dim"], slice(start, end, step))))


def slice_scatter(a: Named) -> Call | None:
    """What is written, if it takes the place of all."""
    whole = (
        not a["start"] and a["step"] == 1 and (a["end"] is None or (isinstance(a["end"], int) and a["end"] >= 2**62))
    )
    return Call(None, (a["src"],)) if whole else None


def attention(a: Named) -> Call:
    """Attention, with the arguments that are not the defaults."""
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    given = {k: a[k] for k, default in defaults.items() if k in a and a[k] != default}
    return Call(F.scaled_dot_product_attention, (a["query"], a["key"], a["value"]), given)


def interpolate(mode: str) -> Callable[[Named], Call]:
    """A resizing."""

    def call(a: Named) -> Call:
        corners = {"align_corners": a["align_corners"]} if "align_corners" in a else {}
        return Call(
            F.interpolate,
            (a["input"],),
            {"size": a["output_size"], "scale_factor": a["scale_factors"], "mode": mode, **corners},
        )

    return call


def created(function: Any, *names: str) -> Callable[[Named], Call]:
    """A new tensor of a size, type and device."""

    def call(a: Named) -> Call:
        options = {k: a[k] for k in ("dtype", "device") if a.get(k) is not None}
        return Call(function, tuple(a[n] for n in names), options)

    return call


def batch_norm(a: Named) -> Call | None:
    """Normalization by running statistics."""
    if a.get("training", False):
        return None
    tensors = (a["input"], a["running_mean"], a["running_var"], a["weight"], a["bias"])
    return Call(F.batch_norm, tensors, {"training": False, "eps": a["eps"]})


def convolution(function: Any) -> Callable[[Named], Call]:
    """A convolution."""

    def call(a: Named) -> Call:
        by_sample = function is F.conv2d and isinstance(a["groups"], fx.Node) and not isinstance(a["padding"], str)
        # The same arguments in the same order.
        return Call(convolve_by_sample if by_sample else function, tuple(a.values()))

    return call


def convolve_by_sample(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor:
    """``F.conv2d`` with a group for each sample, as dynamic filters want it: files hold a number of groups only.

    Example:
        >>> x, weight = torch.rand(1, 6, 5, 5), torch.rand(4, 3, 3, 3)
        >>> found = convolve_by_sample(x, weight, None, [2, 2], [1, 1], [1, 1], 2)
        >>> torch.allclose(found, F.conv2d(x, weight, None, 2, 1, 1, 2), atol=1e-6)
        True
    """
    channels, kernel = weight.shape[1], weight.shape[2:]
    stride, padding, dilation = ([*value] * (2 // len(value)) for value in (stride, padding, dilation))
    patches = F.unfold(x.reshape(-1, channels, *x.shape[2:]), kernel, dilation, padding, stride)
    length = channels * math.prod(kernel)
    filters = weight.reshape(groups, -1, length)
    out = filters @ patches.reshape(x.shape[0], groups, length, patches.shape[-1])
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    out = out.reshape(x.shape[0], -1, height, width)
    return out if bias is None else out + bias[:, None, None]


def number(a: Named) -> Call:
    """A tensor of a number."""
    return Call(as_number, (a["s"],), {"dtype": a["dtype"]})


def as_number(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.scalar_tensor`` of a number, which under ``torch.jit.trace`` is a tensor already if it is a size.

    Example:
        >>> as_number(3, torch.int64), as_number(torch.tensor(3), torch.int64)
        (tensor(3), tensor(3))
    """
    return value.to(dtype) if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=dtype)
