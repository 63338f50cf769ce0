"""A module runs, and is afterwards as it was."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lq.core.memory import address, is_same_memory
from lq.core.modes import modes_kept
from lq.core.sharding import is_shard

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
_DEPTH = 3  # of containers within each other; what users keep may hold itself
_COPIED = 2**28  # bytes of parameters; a copy of more would be felt, and hardly a forward writes into them


@contextmanager
def as_it_was(root: nn.Module) -> Iterator[None]:
    """Within the block a module may run; afterwards it is as before, whatever its ``forward`` has changed.

    Modes, attributes, the values of parameters, buffers and other tensors among these, and what is in lists, dicts and
    the like, are given back to every module within it, and so are the states of the random generators of Python and
    torch, on the CPU and on NVIDIA's GPUs. Parameters of more than 256 MB are not copied: those that are replaced, as
    by ``p.data = ...``, are given back, and those that are written into are not. What the user has compiled runs as it
    is written, as compiled code shows nobody what it calls.

    Example:
        >>> class Counting(nn.Module):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x
        >>> net = Counting()
        >>> with as_it_was(net):
        ...     _ = net(torch.ones(1))
        >>> net.calls
        0
    """
    modules = [module for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held = _Held([module.__dict__ for module in modules], root.buffers())
    python, devices = random.getstate(), sorted({p.device.index for p in root.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), modes_kept(root), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        random.setstate(python)
        held.give_back()


class _Held:
    """What is in the attributes of modules, and in some tensors besides."""

    def __init__(self, attributes: list[dict[str, Any]], tensors: Iterable[Tensor]) -> None:
        self.containers: list[tuple[Any, Any]] = [(own, dict(own)) for own in attributes]
        self._found = {id(tensor): tensor for tensor in tensors}
        for own in attributes:
            self._collect(own.values(), _DEPTH)
        found = [tensor for tensor in self._found.values() if _holds_values(tensor)]
        self.tensors = [(tensor, tensor.data) for tensor in found]
        size = sum(tensor.nbytes for tensor in found if isinstance(tensor, nn.Parameter))
        copied = [tensor for tensor in found if size <= _COPIED or not isinstance(tensor, nn.Parameter)]
        self.values = [(tensor, tensor.detach().clone()) for tensor in copied]

    def _collect(self, held: Iterable[Any], depth: int) -> None:
        for value in held:
            if isinstance(value, Tensor):
                self._found[id(value)] = value
            elif depth and type(value) in _CONTAINERS:
                self.containers.append((value, value.copy()))
                self._collect(value.values() if isinstance(value, dict) else value, depth - 1)
            elif depth and type(value) is tuple:
                self._collect(value, depth - 1)

    @torch.no_grad()
    def give_back(self) -> None:
        """Make everything what it was."""
        for container, content in self.containers:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)
        for tensor, data in self.tensors:
            if address(data) and not is_same_memory(tensor, data):
                tensor.data = data
        for tensor, value in self.values:
            if value.layout is not torch.strided or not torch.equal(tensor, value):
                tensor.copy_(value)  # not where nothing has changed: a graph may wait for its backward pass


def _holds_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or is_lazy(tensor) or is_shard(tensor))
