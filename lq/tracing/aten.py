"""What ATen operations are called in torch's Python API: names that people and the lowerings know."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload
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


def _same(function: Any, *names: str, **keywords: str) -> Callable[[Named], Call]:
    """``function`` called with the named arguments: by position, and those of ``keywords`` by that name."""
    return lambda a: Call(function, tuple(a[n] for n in names), {k: a[n] for k, n in keywords.items()})


def _first(a: Named) -> Call:
    return Call(None, (next(iter(a.values())),))


def _arithmetic(function: Any) -> Callable[[Named], Call | None]:
    return lambda a: Call(function, (a["self"], a["other"])) if a.get("alpha", 1) == 1 else None


def _hardtanh(a: Named) -> Call:
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Call(F.relu6, (a["self"],))
    return Call(F.hardtanh, (a["self"], a["min_val"], a["max_val"]))


def _elu(a: Named) -> Call | None:
    return Call(F.elu, (a["self"], a["alpha"])) if a["scale"] == 1 and a["input_scale"] == 1 else None


def _softmax(function: Any) -> Callable[[Named], Call]:
    return lambda a: Call(function, (a["self"], a["dim"]), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def _dropout(function: Any) -> Callable[[Named], Call]:
    return lambda a: Call(function, (a["input"], a["p"], True)) if a["train"] else _first(a)


def _max_pool(function: Any) -> Callable[[Named], Call]:
    def call(a: Named) -> Call:
        names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return Call(function, tuple(a[n] if n != "stride" else a[n] or None for n in names))

    return call


def _avg_pool(function: Any) -> Callable[[Named], Call]:
    def call(a: Named) -> Call:
        a = {**a, "stride": a["stride"] or None}
        return Call(function, tuple(a.values()))  # the same arguments in the same order

    return call


def _mean(a: Named) -> Call:
    dims = () if a.get("dim") is None else (a["dim"], a["keepdim"])
    return Call(torch.mean, (a["self"], *dims), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def _slice(a: Named) -> Call | None:
    if not isinstance(a["dim"], int) or a["dim"] < 0:
        return None
    start, end = a["start"] or None, a["end"]
    end = None if isinstance(end, int) and end >= 2**62 else end
    step = None if a["step"] == 1 else a["step"]
    if (start, end, step) == (None, None, None):
        return _first(a)
    return Call(operator.getitem, (a["self"], (*[slice(None)] * a["dim"], slice(start, end, step))))


def _attention(a: Named) -> Call:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    given = {k: a[k] for k, default in defaults.items() if k in a and a[k] != default}
    return Call(F.scaled_dot_product_attention, (a["query"], a["key"], a["value"]), given)


def _interpolate(mode: str) -> Callable[[Named], Call]:
    def call(a: Named) -> Call:
        corners = {"align_corners": a["align_corners"]} if "align_corners" in a else {}
        return Call(
            F.interpolate,
            (a["input"],),
            {"size": a["output_size"], "scale_factor": a["scale_factors"], "mode": mode, **corners},
        )

    return call


def _created(function: Any, *names: str) -> Callable[[Named], Call]:
    def call(a: Named) -> Call:
        options = {k: a[k] for k in ("dtype", "device") if a.get(k) is not None}
        return Call(function, tuple(a[n] for n in names), options)

    return call


def _method(name: str, *names: str) -> Callable[[Named], Call]:
    return _same(name, *names)


def _batch_norm(a: Named) -> Call | None:
    if a.get("training", False):
        return None
    tensors = (a["input"], a["running_mean"], a["running_var"], a["weight"], a["bias"])
    return Call(F.batch_norm, tensors, {"training": False, "eps": a["eps"]})


def _convolution(function: Any) -> Callable[[Named], Call]:
    return lambda a: Call(function, tuple(a.values()))  # the same arguments in the same order


_TABLE: dict[str, Callable[[Named], Call | None]] = {
    # Activations.
    **{n: _same(getattr(F, n), "self") for n in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "mish")},
    **{n: _same(getattr(torch, n), "self") for n in ("sigmoid", "tanh")},
    "leaky_relu": _same(F.leaky_relu, "self", "negative_slope"),
    "gelu": _same(F.gelu, "self", approximate="approximate"),
    "elu": _elu,
    "hardtanh": _hardtanh,
    "clamp.default": _same(torch.clamp, "self", min="min", max="max"),
    "clamp_min.default": _same(torch.clamp, "self", min="min"),
    "softmax.int": _softmax(F.softmax),
    "log_softmax.int": _softmax(F.log_softmax),
    "dropout": _dropout(F.dropout),
    "feature_dropout": _dropout(F.dropout2d),
    "alpha_dropout": _dropout(F.alpha_dropout),
    # Arithmetic.
    **{f"{n}.{o}": _arithmetic(getattr(operator, n)) for n in ("add", "sub", "mul") for o in ("Tensor", "Scalar")},
    "div.Tensor": _arithmetic(operator.truediv),
    "matmul": _same(torch.matmul, "self", "other"),
    "where.self": _same(torch.where, "condition", "self", "other"),
    "mean.default": _mean,
    "mean.dim": _mean,
    # Shapes.
    "cat.default": _same(torch.cat, "tensors", "dim"),
    "concat.default": _same(torch.cat, "tensors", "dim"),
    "stack": _same(torch.stack, "tensors", "dim"),
    "flatten.using_ints": _same(torch.flatten, "self", "start_dim", "end_dim"),
    "view.default": _same(torch.reshape, "self", "size"),
    "_unsafe_view.default": _same(torch.reshape, "self", "size"),
    "reshape.default": _same(torch.reshape, "self", "shape"),
    "permute": _same(torch.permute, "self", "dims"),
    "transpose.int": _same(torch.transpose, "self", "dim0", "dim1"),
    "swapaxes": _same(torch.transpose, "self", "axis0", "axis1"),
    "swapdims": _same(torch.transpose, "self", "dim0", "dim1"),
    "movedim.intlist": _same(torch.movedim, "self", "source", "destination"),
    "movedim.int": _same(torch.movedim, "self", "source", "destination"),
    "squeeze.default": _same(torch.squeeze, "self"),
    "squeeze.dim": _same(torch.squeeze, "self", "dim"),
    "squeeze.dims": lambda a: Call(torch.squeeze, (a["self"], tuple(a["dim"]))),
    "unsqueeze": _same(torch.unsqueeze, "self", "dim"),
    "chunk": _same(torch.chunk, "self", "chunks", "dim"),
    "split.Tensor": _same(torch.split, "self", "split_size", "dim"),
    "split.sizes": _same(torch.split, "self", "split_size", "dim"),
    "split_with_sizes": _same(torch.split, "self", "split_sizes", "dim"),
    "unbind.int": _same(torch.unbind, "self", "dim"),
    "select.int": _same(torch.select, "self", "dim", "index"),
    "slice.Tensor": _slice,
    "narrow.default": _same(torch.narrow, "self", "dim", "start", "length"),
    "expand.default": _method("expand", "self", "size"),
    "repeat": _method("repeat", "self", "repeats"),
    "unflatten.int": _method("unflatten", "self", "dim", "sizes"),
    "roll": _same(torch.roll, "self", "shifts", "dims"),
    "pixel_shuffle": _same(F.pixel_shuffle, "self", "upscale_factor"),
    "pixel_unshuffle": _same(F.pixel_unshuffle, "self", "downscale_factor"),
    "channel_shuffle": _same(torch.channel_shuffle, "self", "groups"),
    "pad": _same(F.pad, "self", "pad", mode="mode", value="value"),
    "constant_pad_nd": _same(F.pad, "self", "pad", value="value"),
    # Nothing that a graph without operations in place could tell from its input.
    **dict.fromkeys(("detach", "alias", "clone", "contiguous", "lift_fresh", "lift_fresh_copy"), _first),
    # Layers.
    **{f"conv{d}d.default": _convolution(getattr(F, f"conv{d}d")) for d in (1, 2, 3)},
    **{f"conv{d}d.padding": _convolution(getattr(F, f"conv{d}d")) for d in (1, 2, 3)},
    "linear": _same(F.linear, "input", "weight", "bias"),
    "embedding": _same(F.embedding, "indices", "weight"),
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _same(F.layer_norm, "input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": _same(F.group_norm, "input", "num_groups", "weight", "bias", "eps"),
    "scaled_dot_product_attention": _attention,
    # Pooling and resizing.
    **{f"max_pool{d}d": _max_pool(getattr(F, f"max_pool{d}d")) for d in (1, 2, 3)},
    "max_pool2d_with_indices": _max_pool(F.max_pool2d),
    "max_pool3d_with_indices": _max_pool(F.max_pool3d),
    **{f"avg_pool{d}d": _avg_pool(getattr(F, f"avg_pool{d}d")) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _same(getattr(F, f"adaptive_avg_pool{d}d"), "self", "output_size") for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": _same(getattr(F, f"adaptive_max_pool{d}d"), "self", "output_size") for d in (1, 2, 3)},
    "upsample_nearest2d.vec": _interpolate("nearest"),
    "upsample_bilinear2d.vec": _interpolate("bilinear"),
    # New tensors.
    "new_zeros": _created("new_zeros", "self", "size"),
    "new_ones": _created("new_ones", "self", "size"),
    "new_full": _created("new_full", "self", "size", "fill_value"),
    "zeros.default": _created(torch.zeros, "size"),
    "ones.default": _created(torch.ones, "size"),
    "full.default": _created(torch.full, "size", "fill_value"),
    "arange.default": _created(torch.arange, "end"),
    "arange.start": _created(torch.arange, "start", "end"),
    "arange.start_step": _created(torch.arange, "start", "end", "step"),
    "sym_size.int": _method("size", "self", "dim"),
}

# Operations that return indices too, of which the first result alone has a name of its own.
WITH_INDICES = frozenset(
    {"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"}
)
