"""One name for each operation, however it is written: ``x + y``, ``x += y``, ``x.add(y)`` and ``torch.add(x, y)``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import get_overridable_functions, resolve_name

from lq.compat.torch_private import NAMESPACE_NN

_ALIASES: Mapping[str, str] = {
    "concat": "cat", "concatenate": "cat", "rsub": "sub", "rtruediv": "div", "truediv": "div", "true_divide": "div",
    "radd": "add", "iadd": "add", "rmul": "mul", "imul": "mul", "multiply": "mul", "rmatmul": "matmul",
    "getitem": "getitem", "setitem": "setitem", "group_norm": "group_norm",
}  # fmt: skip
# Torch's own list of what can be overridden lacks some of these: F.hardswish, torch.relu_, Tensor.unflatten.
_NAMESPACES: tuple[Any, ...] = (torch, torch.Tensor, F, NAMESPACE_NN, torch.special, torch.linalg)
_WRITERS = frozenset(
    {"setitem", "iadd", "imul", "isub", "itruediv", "idiv", "ipow", "iand", "ior", "ixor", "ifloordiv"}
)


def operation(func: Any) -> str:
    """The name of the operation that a torch function computes, in place or not.

    Example:
        >>> [operation(f) for f in (torch.add, torch.Tensor.__iadd__, torch.Tensor.add_, F.relu, torch.relu_)]
        ['add', 'add', 'add', 'relu', 'relu']
        >>> operation(torch.Tensor.T.__get__), operation(torch.ops.aten.index.Tensor)
        ('T', 'index')
    """
    name = _own_name(func)
    plain = name.strip("_") if name.startswith("__") else name.rstrip("_") or name
    return _ALIASES.get(plain, plain)


def _own_name(func: Any) -> str:
    name = str(getattr(func, "__name__", type(func).__name__))
    if name in ("__get__", "__set__"):
        return property_of(func) or name
    return name.partition(".")[0]  # of an OpOverload, such as "index.Tensor"


def property_of(func: Any) -> str | None:
    """The name of the property of tensors that a function gets or sets; ``None`` for other functions.

    Example:
        >>> property_of(torch.Tensor.T.__get__), property_of(torch.add)
        ('T', None)
    """
    name = str(getattr(func, "__name__", ""))
    if name not in ("__get__", "__set__"):
        return None
    return (resolve_name(func) or name).removesuffix(f".{name}").rpartition(".")[2]


def writes(func: Any) -> bool:
    """Whether a function works in place on its first argument.

    Example:
        >>> writes(torch.Tensor.add_), writes(torch.Tensor.__setitem__), writes(torch.Tensor.add)
        (True, True, False)
    """
    name = str(getattr(func, "__name__", ""))
    if name.startswith("__"):
        return name.strip("_") in _WRITERS
    return name.endswith("_") and not name.startswith("_")


@lru_cache(maxsize=1)
def _index() -> dict[str, tuple[Any, ...]]:
    found: dict[str, dict[Any, None]] = {}
    unlisted = [
        vars(space).get(name, getattr(space, name)) for space in _NAMESPACES for name in dir(space) if name[0] != "_"
    ]
    for functions in (*get_overridable_functions().values(), unlisted):
        for function in filter(_is_function, functions):
            found.setdefault(operation(function), {})[function] = None
    return {name: tuple(functions) for name, functions in found.items()}


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and hasattr(value, "__name__")


def functions_of(name: str) -> tuple[Any, ...]:
    """All functions of torch whose :func:`operation` is ``name``; empty if torch has none.

    Example:
        >>> F.relu in functions_of("relu"), torch.Tensor.relu_ in functions_of("relu"), functions_of("nonsense")
        (True, True, ())
        >>> F.hardswish in functions_of("hardswish"), torch.Tensor.unflatten in functions_of("unflatten")
        (True, True)
    """
    return _index().get(name, ())


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with constant statistics, as detectors have them.

    Source:
        ``torchvision.ops.misc.FrozenBatchNorm2d``, and the classes of that name in detectron2 and transformers (there
        with a prefix); known by name and buffers, so that none of these packages is imported.

    Example:
        >>> class FrozenBatchNorm2d(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         for name in ("weight", "bias", "running_mean", "running_var"):
        ...             self.register_buffer(name, torch.ones(8))
        >>> is_frozen_batch_norm(FrozenBatchNorm2d()), is_frozen_batch_norm(nn.BatchNorm2d(8).eval())
        (True, False)
    """
    named = type(module).__name__.endswith("FrozenBatchNorm2d")
    return named and {"weight", "bias", "running_mean", "running_var"} <= module._buffers.keys()
