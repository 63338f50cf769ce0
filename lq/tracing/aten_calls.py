"""How calls of torch's Python API are made from the arguments of ATen operations; :mod:`lq.tracing.aten` lists them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Named = dict[str, Any]


class Call(NamedTuple):
    """The call that a node of a graph makes; a ``target`` of ``None`` passes its first argument on.

    Example:
        >>> from torch import fx
        >>> call = Call(F.relu6, (fx.Graph().placeholder("x"),))
        >>> call.op, str(call)
        ('call_function', 'relu6(x)')
        >>> Call("expand", (1, [2, 3])).op
        'call_method'
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}

    @property
    def op(self) -> str:
        """As :class:`torch.fx.Node` has it."""
        return "call_method" if isinstance(self.target, str) else "call_function"

    def __str__(self) -> str:
        """The call as code, a method like a function; of one that passes its first argument on, that."""
        if self.target is None:
            return str(self.args[0])
        name = self.target if isinstance(self.target, str) else getattr(self.target, "__name__", self.target)
        given = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        return f"{name}({', '.join(given)})"


def same(function: Any, *names: str, **keywords: str) -> Callable[[Named], Call]:
    """``function`` called with the named arguments: by position, and those of ``keywords`` by that name.

    Example:
        >>> scaled = same(F.softmax, "self", dim="axis")
        >>> print(scaled({"self": 1, "axis": 2, "unused": 3}))
        softmax(1, dim=2)
    """
    return lambda a: Call(function, tuple(a[n] for n in names), {k: a[n] for k, n in keywords.items()})


def first(a: Named) -> Call:
    """Its first argument, unchanged.

    Example:
        >>> print(first({"self": 1, "memory_format": None}))
        1
    """
    return Call(None, (next(iter(a.values())),))


def arithmetic(function: Any) -> Callable[[Named], Call | None]:
    """An operator of Python, unless the second argument is multiplied by something (``alpha``).

    Example:
        >>> subtract = arithmetic(operator.sub)
        >>> print(subtract({"self": 5, "other": 3, "alpha": 1}), subtract({"self": 5, "other": 3, "alpha": 2}))
        sub(5, 3) None
    """
    return lambda a: Call(function, (a["self"], a["other"])) if a.get("alpha", 1) == 1 else None


def hardtanh(a: Named) -> Call:
    """A ReLU6 where it is one.

    Example:
        >>> print(hardtanh({"self": 1, "min_val": 0, "max_val": 6}), hardtanh({"self": 1, "min_val": -1, "max_val": 1}))
        relu6(1) hardtanh(1, -1, 1)
    """
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Call(F.relu6, (a["self"],))
    return Call(F.hardtanh, (a["self"], a["min_val"], a["max_val"]))


def elu(a: Named) -> Call | None:
    """ELU; ``None`` for SELU and CELU, which have scales of their own.

    Example:
        >>> print(elu({"self": 3, "alpha": 1, "scale": 1, "input_scale": 1}))
        elu(3, 1)
        >>> elu({"self": 3, "alpha": 1.67, "scale": 1.05, "input_scale": 1})
    """
    return Call(F.elu, (a["self"], a["alpha"])) if a["scale"] == 1 and a["input_scale"] == 1 else None


def softmax(function: Any) -> Callable[[Named], Call]:
    """Softmax or its logarithm.

    Example:
        >>> print(softmax(F.softmax)({"self": 3, "dim": -1, "dtype": None}))
        softmax(3, -1)
    """
    return lambda a: Call(function, (a["self"], a["dim"]), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def dropout(function: Any) -> Callable[[Named], Call]:
    """A dropout in training, which does nothing in evaluation.

    Example:
        >>> call = dropout(F.dropout)
        >>> print(call({"input": 3, "p": 0.5, "train": True}), call({"input": 3, "p": 0.5, "train": False}))
        dropout(3, 0.5, True) 3
    """
    return lambda a: Call(function, (a["input"], a["p"], True)) if a["train"] else first(a)


def mean(a: Named) -> Call:
    """The mean over all dimensions or some.

    Example:
        >>> from torch import fx
        >>> from lq.tracing.aten import python_call
        >>> x = fx.Graph().placeholder("x")
        >>> print(python_call(torch.ops.aten.mean.dim, (x, [2, 3]), {"dtype": torch.float64}))
        mean(x, [2, 3], False, dtype=torch.float64)
    """
    # An empty list stands for all dimensions; torch.mean does not take ``None`` together with ``keepdim``.
    dims = (a["dim"] or [], a["keepdim"]) if a.get("dim") or a.get("keepdim") else ()
    return Call(torch.mean, (a["self"], *dims), {} if a["dtype"] is None else {"dtype": a["dtype"]})


def slice_of(a: Named) -> Call | None:
    """An index; the tensor itself if that takes all of it.

    Example:
        >>> from torch import fx
        >>> from lq.tracing.aten import python_call
        >>> x = fx.Graph().placeholder("x")
        >>> print(python_call(torch.ops.aten.slice.Tensor, (x, 1, 0, 4), {}))
        getitem(x, (slice(None, None, None), slice(None, 4, None)))
        >>> print(python_call(torch.ops.aten.slice.Tensor, (x, 1, 0, 2**63 - 1), {}))
        x
    """
    if not isinstance(a["dim"], int) or a["dim"] < 0:
        return None
    start, end = a["start"] or None, a["end"]
    end = None if isinstance(end, int) and end >= 2**62 else end
    step = None if a["step"] == 1 else a["step"]
    if (start, end, step) == (None, None, None):
        return first(a)
    return Call(operator.getitem, (a["self"], (*[slice(None)] * a["dim"], slice(start, end, step))))


def slice_scatter(a: Named) -> Call | None:
    """What is written, if it takes the place of all; else ``None``.

    Example:
        >>> print(slice_scatter({"self": 1, "src": 2, "dim": 0, "start": 0, "end": 2**63 - 1, "step": 1}))
        2
        >>> slice_scatter({"self": 1, "src": 2, "dim": 0, "start": 0, "end": 4, "step": 1})
    """
    whole = (
        not a["start"] and a["step"] == 1 and (a["end"] is None or (isinstance(a["end"], int) and a["end"] >= 2**62))
    )
    return Call(None, (a["src"],)) if whole else None


def created(function: Any, *names: str) -> Callable[[Named], Call]:
    """A new tensor, with its type and device; what else ATen says of it is left out.

    Args:
        function: makes it.
        names: of the arguments that it takes by position.

    Example:
        >>> from lq.tracing.aten import python_call
        >>> print(python_call(torch.ops.aten.full.default, ([2, 3], 1.5), {"dtype": torch.float32}))
        full([2, 3], 1.5, dtype=torch.float32)
    """

    def call(a: Named) -> Call:
        options = {k: a[k] for k in ("dtype", "device") if a.get(k) is not None}
        return Call(function, tuple(a[n] for n in names), options)

    return call


def number(a: Named) -> Call:
    """A tensor of a number.

    Example:
        >>> print(number({"s": 3, "dtype": torch.int64}))
        as_number(3, dtype=torch.int64)
    """
    return Call(as_number, (a["s"],), {"dtype": a["dtype"]})


def as_number(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.scalar_tensor`` of a number, which under ``torch.jit.trace`` is a tensor already if it is a size.

    Example:
        >>> as_number(3, torch.int64), as_number(torch.tensor(3), torch.int64)
        (tensor(3), tensor(3))
    """
    return value.to(dtype) if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=dtype)
