"""What ATen operations are called in torch's Python API: names that people and the lowerings know."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from lq.compat.torch_private import OpOverload
from lq.tracing import aten_calls as calls
from lq.tracing import aten_layers as layers
from lq.tracing.aten_calls import Call, Named


def python_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The call of torch's Python API that computes what an ATen operation does; itself where there is none.

    Example:
        >>> python_call(torch.ops.aten.mul.Tensor, (2, 3), {})
        Call(target=<built-in function mul>, args=(2, 3), kwargs={})
    """
    if isinstance(target, OpOverload) and target.namespace == "aten":
        named = arguments(target, args, kwargs)
        for name in (target._schema.name.partition("::")[2] + "." + target._overloadname, target._opname):
            found = _TABLE[name](named) if name in _TABLE else None
            if found is not None:
                return found
    return Call(target, args, kwargs)


def arguments(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    """All arguments of an ATen operation by name, defaults included.

    Example:
        >>> arguments(torch.ops.aten.hardtanh.default, ("x",), {})
        {'self': 'x', 'min_val': -1, 'max_val': 1}
    """
    schema = target._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    named.update(zip((a.name for a in schema), args, strict=False))
    ordered = {a.name: {**named, **kwargs}[a.name] for a in schema}
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in ordered.items()}


_TABLE: dict[str, Callable[[Named], Call | None]] = {
    # Activations.
    **{n: calls.same(getattr(F, n), "self") for n in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "mish")},
    **{n: calls.same(getattr(torch, n), "self") for n in ("sigmoid", "tanh")},
    "leaky_relu": calls.same(F.leaky_relu, "self", "negative_slope"),
    "gelu": calls.same(F.gelu, "self", approximate="approximate"),
    "elu": calls.elu,
    "hardtanh": calls.hardtanh,
    "clamp.default": calls.same(torch.clamp, "self", min="min", max="max"),
    "clamp_min.default": calls.same(torch.clamp, "self", min="min"),
    "softmax.int": calls.softmax(F.softmax),
    "log_softmax.int": calls.softmax(F.log_softmax),
    "dropout": calls.dropout(F.dropout),
    "feature_dropout": calls.dropout(F.dropout2d),
    "alpha_dropout": calls.dropout(F.alpha_dropout),
    # Arithmetic.
    **{f"{n}.{o}": calls.arithmetic(getattr(operator, n)) for n in ("add", "sub", "mul") for o in ("Tensor", "Scalar")},
    "div.Tensor": calls.arithmetic(operator.truediv),
    "matmul": calls.same(torch.matmul, "self", "other"),
    # As an ATen operation torch.jit.trace would take "k" for a constant.
    "topk.default": calls.same(torch.topk, "self", "k", "dim", largest="largest", sorted="sorted"),
    "where.self": calls.same(torch.where, "condition", "self", "other"),
    "mean.default": calls.mean,
    "mean.dim": calls.mean,
    # Shapes.
    "cat.default": calls.same(torch.cat, "tensors", "dim"),
    "concat.default": calls.same(torch.cat, "tensors", "dim"),
    "stack": calls.same(torch.stack, "tensors", "dim"),
    "flatten.using_ints": calls.same(torch.flatten, "self", "start_dim", "end_dim"),
    "view.default": calls.same(torch.reshape, "self", "size"),
    "_unsafe_view.default": calls.same(torch.reshape, "self", "size"),
    "reshape.default": calls.same(torch.reshape, "self", "shape"),
    "permute": calls.same(torch.permute, "self", "dims"),
    "transpose.int": calls.same(torch.transpose, "self", "dim0", "dim1"),
    "swapaxes": calls.same(torch.transpose, "self", "axis0", "axis1"),
    "swapdims": calls.same(torch.transpose, "self", "dim0", "dim1"),
    "movedim.intlist": calls.same(torch.movedim, "self", "source", "destination"),
    "movedim.int": calls.same(torch.movedim, "self", "source", "destination"),
    "squeeze.default": calls.same(torch.squeeze, "self"),
    "squeeze.dim": calls.same(torch.squeeze, "self", "dim"),
    "squeeze.dims": lambda a: calls.Call(torch.squeeze, (a["self"], tuple(a["dim"]))),
    "unsqueeze": calls.same(torch.unsqueeze, "self", "dim"),
    "chunk": calls.same(torch.chunk, "self", "chunks", "dim"),
    "split.Tensor": calls.same(torch.split, "self", "split_size", "dim"),
    "split.sizes": calls.same(torch.split, "self", "split_size", "dim"),
    "split_with_sizes": calls.same(torch.split, "self", "split_sizes", "dim"),
    "unbind.int": calls.same(torch.unbind, "self", "dim"),
    "select.int": calls.same(torch.select, "self", "dim", "index"),
    "slice.Tensor": calls.slice_of,
    "slice_scatter": calls.slice_scatter,
    # torch.jit.trace takes a fill by a tensor for a full_like, and has none.
    "fill.Scalar": calls.same(torch.full_like, "self", "value"),
    "fill.Tensor": calls.same(torch.ops.aten.copy.default, "self", "value"),
    "narrow.default": calls.same(torch.narrow, "self", "dim", "start", "length"),
    "expand.default": calls.same("expand", "self", "size"),
    "repeat": calls.same("repeat", "self", "repeats"),
    "unflatten.int": calls.same("unflatten", "self", "dim", "sizes"),
    "roll": calls.same(torch.roll, "self", "shifts", "dims"),
    "pixel_shuffle": calls.same(F.pixel_shuffle, "self", "upscale_factor"),
    "pixel_unshuffle": calls.same(F.pixel_unshuffle, "self", "downscale_factor"),
    "channel_shuffle": calls.same(torch.channel_shuffle, "self", "groups"),
    "pad": calls.same(F.pad, "self", "pad", mode="mode", value="value"),
    "constant_pad_nd": calls.same(F.pad, "self", "pad", value="value"),
    # Nothing that a graph without operations in place could tell from its input.
    **dict.fromkeys(("detach", "alias", "clone", "contiguous", "lift_fresh", "lift_fresh_copy"), calls.first),
    # Layers.
    **{f"conv{d}d.default": layers.convolution(getattr(F, f"conv{d}d")) for d in (1, 2, 3)},
    **{f"conv{d}d.padding": layers.convolution(getattr(F, f"conv{d}d")) for d in (1, 2, 3)},
    "linear": calls.same(F.linear, "input", "weight", "bias"),
    "embedding": calls.same(F.embedding, "indices", "weight"),
    "batch_norm": layers.batch_norm,
    "_native_batch_norm_legit_no_training": layers.batch_norm,
    "layer_norm": calls.same(F.layer_norm, "input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": calls.same(F.group_norm, "input", "num_groups", "weight", "bias", "eps"),
    "scaled_dot_product_attention": layers.attention,
    # Pooling and resizing.
    **{f"max_pool{d}d": layers.max_pool(getattr(F, f"max_pool{d}d")) for d in (1, 2, 3)},
    "max_pool2d_with_indices": layers.max_pool(F.max_pool2d),
    "max_pool3d_with_indices": layers.max_pool(F.max_pool3d),
    **{f"avg_pool{d}d": layers.avg_pool(getattr(F, f"avg_pool{d}d")) for d in (1, 2, 3)},
    **{
        f"adaptive_{kind}_pool{d}d": calls.same(getattr(F, f"adaptive_{kind}_pool{d}d"), "self", "output_size")
        for kind in ("avg", "max")
        for d in (1, 2, 3)
    },
    "upsample_nearest2d.vec": layers.interpolate("nearest"),
    "upsample_bilinear2d.vec": layers.interpolate("bilinear"),
    # New tensors.
    "new_zeros": calls.created("new_zeros", "self", "size"),
    "new_ones": calls.created("new_ones", "self", "size"),
    "new_full": calls.created("new_full", "self", "size", "fill_value"),
    **{
        f"{kind}_like.default": calls.created(getattr(torch, f"{kind}_like"), "self")
        for kind in ("zeros", "ones", "empty")
    },
    "full_like.default": calls.created(torch.full_like, "self", "fill_value"),
    "empty.memory_format": calls.created(torch.empty, "size"),
    "zeros.default": calls.created(torch.zeros, "size"),
    "ones.default": calls.created(torch.ones, "size"),
    "scalar_tensor.default": calls.number,
    "full.default": calls.created(torch.full, "size", "fill_value"),
    "arange.default": calls.created(torch.arange, "end"),
    "arange.start": calls.created(torch.arange, "start", "end"),
    "arange.start_step": calls.created(torch.arange, "start", "end", "step"),
    "sym_size.int": calls.same("size", "self", "dim"),
    "sym_numel.default": calls.same("numel", "self"),
}

# Operations that return indices too, of which the first result alone has a name of its own.
WITH_INDICES = frozenset(
    {
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
    }
)
