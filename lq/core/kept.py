"""A module runs, and is afterwards as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lq.core.modes import modes_kept


@contextmanager
def as_it_was(root: nn.Module) -> Iterator[None]:
    """Within the block a module may run; afterwards it is as before, whatever its ``forward`` has changed.

    Modes, the values of buffers, attributes and what is in lists, dicts and sets among these are given back, to every
    module within it, and so are the states of the random generators of Python and torch, on the CPU and on NVIDIA's
    GPUs. What the user has compiled runs as it is written, as compiled code shows nobody what it calls.

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
    attributes = [dict(module.__dict__) for module in modules]
    containers = [(value, copy.copy(value)) for own in attributes for value in own.values() if _is_container(value)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in root.buffers() if not buffer.is_meta]
    python, devices = random.getstate(), sorted({p.device.index for p in root.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), modes_kept(root), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        random.setstate(python)
        for module, before in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(before)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _is_container(value: Any) -> bool:
    return type(value) in (list, dict, set)
