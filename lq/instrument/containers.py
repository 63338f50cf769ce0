"""Containers that are instrumented count, index and iterate what the user put in, and not ``qat_state``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from lq.core.state import STATE


def _own(container: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in container._modules.items() if name != STATE}


def _length(self: nn.Module) -> int:
    return len(_own(self))


def _values(self: nn.Module) -> Iterator[Any]:
    return iter(_own(self).values())


def _keys(self: nn.Module) -> Iterator[str]:
    return iter(_own(self))


def members(cls: Any) -> dict[str, Any]:
    """The methods that an instrumented subclass of a container overrides; none for other classes.

    Args:
        cls: the user's class.

    Example:
        >>> sorted(members(nn.Sequential)), members(nn.ReLU)
        (['__getitem__', '__iter__', '__len__'], {})
    """
    if issubclass(cls, nn.ModuleDict):
        own: dict[str, Any] = {"keys": lambda self: _own(self).keys(), "values": lambda self: _own(self).values()}
        own |= {"items": lambda self: _own(self).items(), "__contains__": lambda self, key: key in _own(self)}
        return {"__len__": _length, "__iter__": _keys, **own}
    if not issubclass(cls, (nn.Sequential, nn.ModuleList)):
        return {}

    def getitem(self: nn.Module, index: Any) -> Any:
        if not isinstance(index, slice):
            return list(_own(self).values())[index]
        # A part of the user's class, which nobody has instrumented; the modules in it are the same ones.
        if issubclass(cls, nn.Sequential):
            return cls(OrderedDict(list(_own(self).items())[index]))
        return cls(list(_own(self).values())[index])

    return {"__len__": _length, "__iter__": _values, "__getitem__": getitem}
