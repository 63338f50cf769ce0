"""Another version of the target computes in its place, while the user's own code runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lq.backends.prepare import set_phase, state_of
from lq.conversion.on_cpu import as_float32
from lq.core.sharding import whole
from lq.export.formats.torchscript import int8_kernels
from lq.lightning_module.target import float_state, target_of
from lq.tracing.any_batch import of_any_batch
from lq.tracing.exported_call import ReadArguments
from lq.tracing.structure import Flattener, restore


class StandIn:
    """Lets a version of a module, such as an int8 model on the CPU, answer the calls of it.

    ``module(x)`` and ``module.forward(x)`` reach the version, whose tensors come back in the structure that the module
    itself returns them in. What calls parts of the module does not reach it. It gets no arguments that a detector does
    not read, and batches of its own size.

    Args:
        module: stays in its place, with all its attributes.
        version: takes the same arguments.

    Example:
        >>> net = nn.Sequential(nn.Identity())
        >>> with StandIn(net, lambda x: x + 1) as stand_in:
        ...     net(torch.zeros(1)), stand_in.calls
        (tensor([1.]), 1)
        >>> net(torch.zeros(1))
        tensor([0.])
    """

    def __init__(self, module: nn.Module, version: Callable[..., Any]) -> None:
        self.module, self.version, self.calls = module, of_any_batch(version), 0
        self._read = ReadArguments(module)
        self._structure: tuple[Any, int] | None = None

    def __enter__(self) -> StandIn:
        attributes = self.module.__dict__
        self._own = attributes.get("forward")
        self._forward = self.module.forward
        attributes["forward"] = self._answer
        return self

    def __exit__(self, *_: object) -> None:
        attributes = self.module.__dict__
        if self._own is None:
            del attributes["forward"]
        else:
            attributes["forward"] = self._own

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self._structure is None:
            self._ask_module(args, kwargs)
        given, keywords = as_float32(self._read(args, kwargs))
        with torch.no_grad(), int8_kernels():
            output = self.version(*given, **keywords)
        flattener = Flattener()
        flattener.take(output)
        assert self._structure is not None
        structure, count = self._structure
        return restore(structure, flattener.tensors) if len(flattener.tensors) == count else output

    def _ask_module(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out what the module itself reads and returns."""
        self.__exit__()
        try:
            self._structure = _structure(self._forward(*args, **kwargs))
            self._read(args, kwargs)
        finally:
            self.__enter__()


def _structure(output: Any) -> tuple[Any, int]:
    flattener = Flattener()
    return flattener.take(output), len(flattener.tensors)


@contextmanager
def as_float_model(module: nn.Module, name: str, weights: Mapping[str, Any]) -> Iterator[None]:
    """Let a module be its float version, with other weights; afterwards it is as it was.

    Args:
        module: holds the target.
        name: of the target, which is prepared.
        weights: float weights by their names in ``module``, as :func:`float_weights` gives them; what is not among them
            stays.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module = nn.ModuleDict({"net": prepare(nn.Sequential(nn.Linear(1, 1, bias=False)))})
        >>> set_phase(module["net"], fake_quant=True, observer=True, freeze_bn=False)
        >>> with as_float_model(module, "net", {"net.0.weight": torch.tensor([[3.0]])}):
        ...     module["net"](torch.ones(1, 1)).item(), state_of(module["net"]).fake_quant
        (3.0, False)
        >>> state_of(module["net"]).fake_quant
        True
    """
    target = target_of(module, name)
    state = state_of(target)
    phase = {key: getattr(state, key) for key in ("fake_quant", "observer", "freeze_bn")}
    before = copy.deepcopy(module.state_dict())  # of all keys: float weights set learned scales back to the observer's
    module.load_state_dict(dict(weights), strict=False)
    set_phase(target, fake_quant=False, observer=False, freeze_bn=False)
    try:
        yield
    finally:
        set_phase(target, **phase)
        module.load_state_dict(before, strict=False)


def float_weights(module: nn.Module, name: str) -> dict[str, Any]:
    """A copy of all weights of a module, on the CPU, without what preparing its target has added.

    All processes have to call this where the module is split among them.

    Args:
        module: holds the target.
        name: of the target, which is prepared.

    Returns:
        the weights by their names in ``module``.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module = nn.ModuleDict({"net": prepare(nn.Sequential(nn.Linear(2, 1))), "head": nn.Linear(1, 1)})
        >>> list(float_weights(module, "net"))
        ['net.0.weight', 'net.0.bias', 'head.weight', 'head.bias']
    """
    prefix = f"{name}." if name else ""
    own = {prefix + key for key in float_state(target_of(module, name))}
    return {
        key: whole(value).detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for key, value in module.state_dict().items()
        if key in own or not key.startswith(prefix)
    }
