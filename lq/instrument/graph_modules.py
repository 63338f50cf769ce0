"""Graphs of torch.fx that are instrumented compile into the user's class, and their copies are instrumented, too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from lq.core.state import STATE
from lq.instrument.places import PLACE


def members(cls: Any, instrumented: Callable[[Any], type[nn.Module]]) -> dict[str, Any]:
    """The methods that an instrumented subclass of a graph overrides; none for other classes.

    torch.fx writes ``forward`` into the class of the graph at each change of it, and torchvision's feature extractors
    change theirs between training and evaluation. Its copies are built from the graph, of a class of their own.

    Args:
        cls: the user's class.
        instrumented: makes the subclass of a class.

    Example:
        >>> sorted(members(fx.GraphModule, type)), members(nn.ReLU, type)
        (['__deepcopy__', 'recompile'], {})
    """
    if not issubclass(cls, fx.GraphModule):
        return {}

    @contextmanager
    def as_the_users(module: fx.GraphModule) -> Iterator[None]:
        made = type(module)
        module.__class__ = cls
        try:
            yield
        finally:
            module.__class__ = made

    def recompile(self: fx.GraphModule) -> Any:
        with as_the_users(self):
            return self.recompile()

    def deepcopy(self: fx.GraphModule, memo: dict[int, Any]) -> Any:
        with as_the_users(self):
            twin = copy.deepcopy(self, memo)
        if STATE in self._modules:
            twin.add_module(STATE, copy.deepcopy(self._modules[STATE], memo))
        twin.train(self.training)  # a copy of torchvision's comes in training mode
        for name, module in self.named_modules():
            twin.get_submodule(name).training = module.training
        if PLACE in self.__dict__:
            twin.__dict__[PLACE] = copy.deepcopy(self.__dict__[PLACE], memo)
            twin.__class__ = instrumented(type(twin))  # type: ignore[assignment]
        return twin

    return {"recompile": recompile, "__deepcopy__": deepcopy}
