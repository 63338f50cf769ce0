"""Who listens to a module's ``forward``, however it is called: ``module(x)`` or ``module.forward(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lq.instrument.classes import is_instrumented, place_of, swap, unswap
from lq.instrument.places import LISTENERS, Instrument, Place

Hear = Callable[[tuple[Any, ...], dict[str, Any], Any], None]


class Listeners(list[Any]):
    """Those of one module; a copy of that has none.

    Example:
        >>> import copy
        >>> copy.deepcopy(Listeners(["somebody"]))
        []
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Listeners:
        return Listeners()

    def __reduce__(self) -> tuple[type[Listeners], tuple[()]]:
        return Listeners, ()


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
        if place_of(module) is None:
            swap(module, Place("", module, Instrument()))
        module.__dict__.setdefault(LISTENERS, Listeners()).append(self)

    def remove(self) -> None:
        """Stop listening."""
        listeners = self.module.__dict__.get(LISTENERS, ())
        if self not in listeners:
            return
        listeners.remove(self)
        if not listeners and place_of(self.module) is not None and not is_instrumented(self.module):
            unswap(self.module)
