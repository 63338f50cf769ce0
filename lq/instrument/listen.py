"""Who listens to a module's ``forward``, however it is called: ``module(x)`` or ``module.forward(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lq.instrument.classes import place_of, swap, unswap
from lq.instrument.places import Instrument, Place

Hear = Callable[[tuple[Any, ...], dict[str, Any], Any], None]


class Listener:
    """Hears the calls of one module; hooks would miss those of ``forward`` itself.

    Args:
        module: any module, instrumented or not.
        after: gets positional arguments, keywords and output of every call.
        before: gets arguments and keywords, and ``None``, before the call runs.

    Example:
        >>> net, heard = nn.ReLU(), []
        >>> listener = Listener(net, after=lambda args, kwargs, output: heard.append(output))
        >>> _ = net.forward(nn.Parameter())
        >>> listener.remove()
        >>> len(heard), type(net) is nn.ReLU
        (1, True)
    """

    def __init__(self, module: nn.Module, after: Hear | None = None, before: Hear | None = None) -> None:
        self.module, self.before, self.after = module, before, after
        place = place_of(module)
        if place is None:
            place = Place("", module, Instrument())
            place.only_heard = True
            swap(module, place)
        self._place = place
        place.listeners.append(self)

    def remove(self) -> None:
        """Stop listening."""
        if self not in self._place.listeners:
            return
        self._place.listeners.remove(self)
        if self._place.only_heard and not self._place.listeners and place_of(self.module) is self._place:
            unswap(self.module)
