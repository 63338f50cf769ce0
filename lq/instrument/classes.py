"""How a module notices that it is called: its class becomes a subclass with a ``forward`` around the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lq.core.own_class import USERS_CLASS
from lq.instrument import containers, graph_modules
from lq.instrument.mode import run_place
from lq.instrument.places import LISTENERS, PLACE, Instrument, Place


class _Quiet:
    """In front of bases that register their subclasses, or want arguments for them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing."""


@functools.cache
def instrumented(cls: Any) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward goes through its place: one for each class, so that copies share it.

    Example:
        >>> instrumented(nn.ReLU).__name__, issubclass(instrumented(nn.ReLU), nn.ReLU)
        ('ReLU', True)
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        place: Place | None = self.__dict__.get(PLACE)
        if place is None:  # somebody has made another of this class
            return cls.forward(self, *args, **kwargs)
        body = cls.forward if place.own_forward is None else _own_forward
        return run_place(place, self, body, args, kwargs)

    functools.update_wrapper(forward, cls.forward)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        if type(self) is not made:  # a class that parametrize has made
            return super(made, self).__reduce_ex__(protocol)
        return _blank, (cls,), _attributes_of(self)

    members = {"forward": forward, "__reduce_ex__": reduce, USERS_CLASS: cls, "__doc__": cls.__doc__}
    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    members |= containers.members(cls) | graph_modules.members(cls, instrumented)
    registers = any("__init_subclass__" in base.__dict__ for base in cls.__mro__[:-1])
    metaclass: Any = type(cls)
    made: type[nn.Module] = metaclass(cls.__name__, (_Quiet, cls) if registers else (cls,), members)
    return made


def _attributes_of(module: Any) -> Any:
    """What a copy or pickle of a module holds."""
    return module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__


def _own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own: Callable[..., Any] = module.__dict__[PLACE].own_forward
    return own(*args, **kwargs)


def _blank(cls: Any) -> nn.Module:
    made = instrumented(cls)
    return made.__new__(made)


def swap(module: nn.Module, place: Place) -> None:
    """Let ``module`` run through ``place``, in the stead of one that is there for listeners alone.

    Where torch.nn.utils.parametrize has made a class for it, this goes beneath that, so that removing the
    parametrization works as ever; a ``forward`` on the instance is called in the place of the class's.

    Example:
        >>> net = nn.ReLU()
        >>> swap(net, Place("", net, Instrument()))
        >>> type(net) is nn.ReLU, isinstance(net, nn.ReLU), type(net).__name__
        (False, True, 'ReLU')
    """
    heard = place_of(module)
    module.__dict__[PLACE] = place
    if heard is not None:
        place.own_forward = heard.own_forward
        return
    _set_own_class(module, instrumented)
    place.own_forward = module.__dict__.pop("forward", None)


def unswap(module: nn.Module) -> None:
    """Undo :func:`swap`; those who listen go on hearing.

    Example:
        >>> net = nn.ReLU()
        >>> swap(net, Place("", net, Instrument()))
        >>> unswap(net)
        >>> type(net) is nn.ReLU, place_of(net)
        (True, None)
    """
    place: Place = module.__dict__.pop(PLACE)
    if module.__dict__.get(LISTENERS):
        heard = module.__dict__[PLACE] = Place("", module, Instrument())
        heard.own_forward = place.own_forward
        return
    if place.own_forward is not None:
        module.__dict__["forward"] = place.own_forward
    _set_own_class(module, lambda cls: getattr(cls, USERS_CLASS))


def _set_own_class(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change the class of a module, or the one below that of its parametrizations, which copies of it share."""
    kind: Any = type(module)
    if parametrize.is_parametrized(module):
        members = {name: value for name, value in kind.__dict__.items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind)(kind.__name__, (change(kind.__bases__[0]),), members)
    else:
        module.__class__ = change(kind)


def place_of(module: nn.Module) -> Place | None:
    """The place of a module, ``None`` if it has none.

    Example:
        >>> place_of(nn.ReLU()) is None
        True
    """
    return module.__dict__.get(PLACE)


def is_instrumented(module: nn.Module) -> bool:
    """Whether a module is a part of a prepared one, and not merely listened to.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> from lq.instrument.listen import Listener
        >>> heard, prepared = nn.ReLU(), prepare(nn.Sequential(nn.Linear(2, 2)))
        >>> listener = Listener(heard)
        >>> is_instrumented(heard), is_instrumented(prepared), is_instrumented(prepared[0])
        (False, True, True)
    """
    place = place_of(module)
    return place is not None and place.instrument.state is not None
