"""Graphs of torch.fx that are instrumented compile into the user's class, and not into the one around it."""

from __future__ import annotations

from typing import Any

from torch import fx


def members(cls: Any) -> dict[str, Any]:
    """The method that an instrumented subclass of a graph overrides; none for other classes.

    torch.fx writes ``forward`` into the class of the graph at each change of it, and torchvision's feature extractors
    change theirs between training and evaluation.

    Args:
        cls: the user's class.

    Example:
        >>> from torch import nn
        >>> sorted(members(fx.GraphModule)), members(nn.ReLU)
        (['recompile'], {})
    """
    if not issubclass(cls, fx.GraphModule):
        return {}

    def recompile(self: fx.GraphModule) -> Any:
        made = type(self)
        self.__class__ = cls
        try:
            return self.recompile()
        finally:
            self.__class__ = made

    return {"recompile": recompile}
