"""The table of operators: an operation of ATen, and what writes it.

``print(listing_of(function, x=x))`` of :mod:`lq.export.formats.litert.listing` shows what a function is written as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lq.export.formats.litert.call import Builder, OperatorCall
from lq.export.formats.litert.operators import (
    activations,
    attention,
    composed,
    elementwise,
    layers,
    lookups,
    normalization,
    padding,
    parts,
    pooling,
    reductions,
    resizing,
    shapes,
)


@dataclass(frozen=True)
class Operator:
    """How an operation is written.

    Args:
        build: writes it.
        int8: whether LiteRT computes it on integers.
        fuses: whether it computes a ReLU or ReLU6 behind it by itself.
        moves: whether it only moves elements, so that the result lies on the grid of its input.
        leaves_grid: whether a call of what moves elements also adds a value that is not on that grid.
        clamps: whether it is the same before a rounding and behind it, whatever it reads.
        only_float: whether a call of it cannot be computed on integers.
        rounds_twice: whether LiteRT first rounds to a grid of 8 bits, and from there to that of the result. On a grid
            of fewer bits the second rounding may be off by a whole step, which is much.

    Example:
        >>> OPERATORS["conv2d"].fuses, OPERATORS["flatten"].moves, OPERATORS["layer_norm"].int8
        (True, True, False)
        >>> sorted(name for name, known in OPERATORS.items() if known.rounds_twice)
        ['_softmax', 'sigmoid', 'softmax', 'tanh', 'upsample_bilinear2d']
    """

    build: Builder
    int8: bool = False
    fuses: bool = False
    moves: bool = False
    leaves_grid: Callable[[OperatorCall], bool] = lambda _: False
    clamps: bool = False
    only_float: Callable[[OperatorCall], bool] = lambda _: False
    rounds_twice: bool = False


def _moving(build: Builder) -> Operator:
    return Operator(build, moves=True)


def _layer(build: Builder) -> Operator:
    return Operator(build, int8=True, fuses=True)


def _sum(kind: str, options: str) -> Operator:
    return Operator(elementwise.binary(kind, options), int8=True, fuses=True, only_float=elementwise.has_factor)


def _int8(build: Builder, rounds_twice: bool = False) -> Operator:
    return Operator(build, int8=True, rounds_twice=rounds_twice)


BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")

OPERATORS: Mapping[str, Operator] = {
    # Layers.
    "conv1d": _layer(layers.conv),
    "conv2d": _layer(layers.conv),
    "conv_transpose1d": _int8(layers.conv_transpose),
    "conv_transpose2d": _int8(layers.conv_transpose),
    "linear": _layer(layers.linear),
    "matmul": _int8(layers.matmul),
    "bmm": _int8(layers.matmul),
    "mm": _int8(layers.matmul),
    "scaled_dot_product_attention": Operator(attention.attention),
    "embedding": Operator(lookups.embedding),
    "gather": Operator(lookups.gather),
    "cumsum": Operator(reductions.running_sum),
    **dict.fromkeys(BATCH_NORMS, Operator(normalization.batch_norm)),
    "layer_norm": Operator(normalization.layer_norm),
    "group_norm": Operator(composed.group_norm),
    "instance_norm": Operator(composed.instance_norm),
    # Arithmetic.
    "add": _sum("ADD", "AddOptions"),
    "sub": _sum("SUB", "SubOptions"),
    "mul": _layer(elementwise.binary("MUL", "MulOptions")),
    "div": Operator(elementwise.divide, fuses=True),
    "maximum": Operator(elementwise.binary("MAXIMUM", "MaximumMinimumOptions", fused=False)),
    "minimum": Operator(elementwise.binary("MINIMUM", "MaximumMinimumOptions", fused=False)),
    "pow": Operator(elementwise.power),
    **{
        name: Operator(elementwise.unary(kind))
        for name, kind in (
            ("exp", "EXP"), ("log", "LOG"), ("sqrt", "SQRT"), ("rsqrt", "RSQRT"), ("neg", "NEG"), ("abs", "ABS"),
            ("floor", "FLOOR"), ("ceil", "CEIL"), ("cos", "COS"), ("sin", "SIN"),
        )
    },
    # Comparisons.
    **{
        name: Operator(elementwise.comparison(kind))
        for name, kind in (
            ("eq", "EQUAL"), ("ne", "NOT_EQUAL"), ("lt", "LESS"), ("le", "LESS_EQUAL"), ("gt", "GREATER"),
            ("ge", "GREATER_EQUAL"),
        )
    },
    **dict.fromkeys(("logical_and", "bitwise_and"), Operator(elementwise.logical("LOGICAL_AND"))),
    **dict.fromkeys(("logical_or", "bitwise_or"), Operator(elementwise.logical("LOGICAL_OR"))),
    **dict.fromkeys(("logical_not", "bitwise_not"), Operator(elementwise.logical("LOGICAL_NOT", ("self",)))),
    "where": Operator(elementwise.select),
    "masked_fill": Operator(elementwise.masked_fill),
    # Activations.
    "relu": _int8(elementwise.unary("RELU")),
    "relu6": _int8(elementwise.unary("RELU6")),
    "hardtanh": Operator(activations.hardtanh, int8=True, clamps=True),
    "clamp": Operator(activations.clamp, int8=True, clamps=True),
    "clamp_min": Operator(activations.clamp, int8=True, clamps=True),
    "hardswish": _int8(elementwise.unary("HARD_SWISH")),
    "hardsigmoid": _int8(activations.hardsigmoid),
    "sigmoid": _int8(activations.sigmoid, rounds_twice=True),
    "tanh": _int8(activations.tanh, rounds_twice=True),
    "silu": _int8(activations.silu),
    "gelu": _int8(activations.gelu),
    "elu": Operator(composed.elu),
    "celu": Operator(composed.celu),
    "softplus": Operator(composed.softplus),
    "mish": Operator(composed.mish),
    "log_sigmoid": Operator(composed.log_sigmoid),
    "leaky_relu": _int8(activations.leaky_relu),
    "prelu": Operator(activations.prelu),
    **dict.fromkeys(("softmax", "_softmax"), _int8(activations.softmax, rounds_twice=True)),
    "log_softmax": Operator(activations.log_softmax),
    # Pooling and resizing.
    "max_pool2d": _moving(pooling.max_pool),
    "avg_pool2d": Operator(pooling.avg_pool, int8=True, only_float=pooling.divides_unevenly),
    "adaptive_avg_pool2d": _int8(pooling.adaptive_avg_pool),
    "mean": _int8(reductions.reduction("MEAN")),
    "sum": Operator(reductions.reduction("SUM")),
    "amax": Operator(reductions.reduction("REDUCE_MAX")),
    "amin": Operator(reductions.reduction("REDUCE_MIN")),
    "upsample_nearest2d": _moving(resizing.resize_nearest),
    "upsample_bilinear2d": _int8(resizing.resize_bilinear, rounds_twice=True),
    **dict.fromkeys(
        ("pad", "constant_pad_nd"), Operator(padding.pad, int8=True, moves=True, leaves_grid=padding.leaves_grid)
    ),
    # Shapes.
    **{
        name: _moving(shapes.reshape)
        for name in ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
    },
    **{
        name: _moving(shapes.identity)
        for name in (
            "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy",
        )
    },
    **dict.fromkeys(("_to_copy", "to"), _moving(shapes.cast)),
    "permute": _moving(shapes.permute),
    "transpose": _moving(shapes.transpose),
    "swapaxes": _moving(shapes.transpose),
    "t": _moving(shapes.matrix_transpose),
    "numpy_T": _moving(shapes.matrix_transpose),
    "movedim": _moving(shapes.movedim),
    "slice": _moving(parts.slice_of),
    "select": _moving(parts.select),
    "index": _moving(lookups.index),
    "narrow": _moving(parts.narrow),
    "chunk": _moving(parts.split),
    "split": _moving(parts.split),
    "split_with_sizes": _moving(parts.split),
    "unbind": _moving(parts.unbind),
    "expand": _moving(shapes.expand),
    "repeat": _moving(shapes.repeat),
    "roll": _moving(parts.roll),
    "cat": _int8(parts.cat),
}  # fmt: skip
