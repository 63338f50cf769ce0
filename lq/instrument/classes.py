"""How a module notices that it is called: its class is exchanged for a subclass with a ``forward`` around the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lq.instrument.mode import run_place
from lq.instrument.places import Place

PLACE = "_lq_place"
_CLASS = "_lq_class"


class _Quiet:
    """In front of bases that register their subclasses, or want arguments for them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing."""


@functools.cache
def instrumented(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward goes through its place: one for each class, so that copies share it.

    Example:
        >>> instrumented(nn.ReLU).__name__, issubclass(instrumented(nn.ReLU), nn.ReLU)
        ('ReLU', True)
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place: Place = self.__dict__[PLACE]
        body = cls.forward if place.own_forward is None else _own_forward
        return run_place(place, self, body, args, kwargs)

    functools.update_wrapper(forward, cls.forward)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        if type(self) is not made:  # a class that parametrize has made
            return super(made, self).__reduce_ex__(protocol)
        return _blank, (cls,), self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__

    members = {"forward": forward, "__reduce_ex__": reduce, _CLASS: cls, "__doc__": cls.__doc__}
    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    registers = any("__init_subclass__" in base.__dict__ for base in cls.__mro__[:-1])
    made = type(cls)(cls.__name__, (_Quiet, cls) if registers else (cls,), members)
    return made


def _own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own: Callable[..., Any] = module.__dict__[PLACE].own_forward
    return own(*args, **kwargs)


def _blank(cls: type[nn.Module]) -> nn.Module:
    made = instrumented(cls)
    return made.__new__(made)


def swap(module: nn.Module, place: Place) -> None:
    """Let ``module`` run through ``place``.

    Where torch.nn.utils.parametrize has made a class for it, this goes beneath that, so that removing the
    parametrization works as ever; a ``forward`` on the instance is called in the place of the class's.
    """
    module.__dict__[PLACE] = place
    if parametrize.is_parametrized(module):
        type(module).__bases__ = (instrumented(type(module).__bases__[0]),)
    else:
        module.__class__ = instrumented(type(module))
    place.own_forward = module.__dict__.pop("forward", None)


def unswap(module: nn.Module) -> None:
    """Undo :func:`swap`."""
    place: Place = module.__dict__.pop(PLACE)
    if place.own_forward is not None:
        module.__dict__["forward"] = place.own_forward
    own = getattr(type(module), _CLASS)
    if parametrize.is_parametrized(module):
        type(module).__bases__ = (own,)
    else:
        module.__class__ = own


def place_of(module: nn.Module) -> Place | None:
    """The place of a module, ``None`` if it has none.

    Example:
        >>> place_of(nn.ReLU()) is None
        True
    """
    return module.__dict__.get(PLACE)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user gave a module.

    Example:
        >>> own_class(nn.ReLU()).__name__
        'ReLU'
    """
    found: type[nn.Module] = getattr(type(module), _CLASS, type(module))
    return found


def is_plain_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's without modules inside.

    Example:
        >>> is_plain_leaf(nn.ReLU()), is_plain_leaf(nn.Sequential(nn.ReLU()))
        (True, False)
    """
    return own_class(module).__module__.startswith("torch.nn.") and next(module.children(), None) is None
