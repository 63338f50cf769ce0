"""How calls of layers, poolings, resizings and attention are made from ATen's arguments, as :mod:`.aten_calls` does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F

from lq.tracing.aten_calls import Call, Named


def max_pool(function: Any) -> Callable[[Named], Call]:
    """A pooling of maxima; where ATen's stride is empty, it is the size of the kernel.

    Example:
        >>> import torch
        >>> from lq.tracing.aten import python_call
        >>> x = fx.Graph().placeholder("x")
        >>> print(python_call(torch.ops.aten.max_pool2d.default, (x, [2, 2]), {}))
        max_pool2d(x, [2, 2], None, [0, 0], [1, 1], False)
    """

    def call(a: Named) -> Call:
        names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return Call(function, tuple(a[n] if n != "stride" else a[n] or None for n in names))

    return call


def avg_pool(function: Any) -> Callable[[Named], Call]:
    """A pooling of averages; where ATen's stride is empty, it is the size of the kernel.

    Example:
        >>> import torch
        >>> from lq.tracing.aten import python_call
        >>> x = fx.Graph().placeholder("x")
        >>> print(python_call(torch.ops.aten.avg_pool1d.default, (x, [2]), {}))
        avg_pool1d(x, [2], None, [0], False, True)
    """

    def call(a: Named) -> Call:
        a = {**a, "stride": a["stride"] or None}
        return Call(function, tuple(a.values()))  # the same arguments in the same order

    return call


def attention(a: Named) -> Call:
    """Attention, with the arguments that are not the defaults.

    Example:
        >>> import torch
        >>> from lq.tracing.aten import python_call
        >>> q = fx.Graph().placeholder("q")
        >>> print(python_call(torch.ops.aten.scaled_dot_product_attention.default, (q, q, q, None, 0.0, True), {}))
        scaled_dot_product_attention(q, q, q, is_causal=True)
    """
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    given = {k: a[k] for k, default in defaults.items() if k in a and a[k] != default}
    return Call(F.scaled_dot_product_attention, (a["query"], a["key"], a["value"]), given)


def interpolate(mode: str) -> Callable[[Named], Call]:
    """A resizing of images.

    Args:
        mode: of ``F.interpolate``.

    Example:
        >>> print(interpolate("nearest")({"input": 3, "output_size": None, "scale_factors": [2.0, 2.0]}))
        interpolate(3, size=None, scale_factor=[2.0, 2.0], mode='nearest')
    """

    def call(a: Named) -> Call:
        corners = {"align_corners": a["align_corners"]} if "align_corners" in a else {}
        return Call(
            F.interpolate,
            (a["input"],),
            {"size": a["output_size"], "scale_factor": a["scale_factors"], "mode": mode, **corners},
        )

    return call


def batch_norm(a: Named) -> Call | None:
    """Normalization by running statistics; ``None`` for one by those of the batch.

    Example:
        >>> tensors = {"input": 1, "weight": 2, "bias": 3, "running_mean": 4, "running_var": 5}
        >>> print(batch_norm({**tensors, "training": False, "momentum": 0.1, "eps": 1e-5}))
        batch_norm(1, 4, 5, 2, 3, training=False, eps=1e-05)
        >>> batch_norm({**tensors, "training": True, "momentum": 0.1, "eps": 1e-5})
    """
    if a.get("training", False):
        return None
    tensors = (a["input"], a["running_mean"], a["running_var"], a["weight"], a["bias"])
    return Call(F.batch_norm, tensors, {"training": False, "eps": a["eps"]})


def convolution(function: Any) -> Callable[[Named], Call]:
    r"""A convolution; with a number of groups that depends on the batch, a product of matrices.

    Example:
        >>> import torch
        >>> from lq.tracing.aten import python_call
        >>> graph = fx.Graph()
        >>> x, w, n = map(graph.placeholder, "xwn")
        >>> conv = torch.ops.aten.conv2d.default
        >>> print(python_call(conv, (x, w), {}), python_call(conv, (x, w), {"groups": n}), sep="\n")
        conv2d(x, w, None, [1, 1], [0, 0], [1, 1], 1)
        convolve_by_sample(x, w, None, [1, 1], [0, 0], [1, 1], n)
    """

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
        >>> import torch
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
