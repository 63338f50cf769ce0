"""Validation on inputs of several sizes, of which the exported files would take but one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lq.instrument.listen import Listener
from lq.tracing.axes import Axes, axes_of, named_tensors
from lq.tracing.images import image_list
from lq.tracing.structure import Inputs


class SizeWatch:
    """Tells, once, of a call of the target with other sizes than the example, beside the batch.

    Args:
        axes: dimensions that the files leave open.
        tell: gets a sentence if there is such a call.

    Example:
        >>> import torch
        >>> net, example = nn.Conv2d(1, 1, 3), ((torch.zeros(1, 1, 8, 8),), {})
        >>> watch = SizeWatch({}, print)
        >>> watch.start(net, example)
        >>> _ = net(torch.zeros(4, 1, 8, 8)), net(torch.zeros(1, 1, 9, 8))
        lq: validation calls the target with input of shape (1, 1, 9, 8), and the example has (1, 1, 8, 8). ...
        QATCallback(dynamic_axes={'input': [2]}) leaves these sizes open.
    """

    def __init__(self, axes: Axes, tell: Callable[[str], None]) -> None:
        self.axes, self.tell = axes, tell
        self._example: Inputs | None = None
        self._target: nn.Module | None = None
        self._listener: Listener | None = None
        self._told = False

    def start(self, target: nn.Module, example: Inputs | None) -> None:
        """Look at all calls from now on.

        Args:
            target: what is called.
            example: inputs of the call that is exported; ``None`` takes those of the next.
        """
        if not self._told:
            self._target, self._example = target, example
            self._listener = Listener(target, before=self._look)

    def stop(self) -> None:
        """Stop looking."""
        if self._listener is not None:
            self._listener.remove()
        self._target = self._example = self._listener = None

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        call = args, kwargs
        self._example = self._example or call
        target = self._target
        if target is None or image_list(call) is not None:
            return
        others = self._fixed_sizes_that_differ(target, call)
        if others:
            name = next(iter(others))
            known, shape = (tuple(named_tensors(target, inputs)[name].shape) for inputs in (self._example, call))
            self._told = True
            self.stop()
            self.tell(_note(name, known, shape, others))

    def _fixed_sizes_that_differ(self, target: nn.Module, call: Inputs) -> dict[str, list[int]]:
        """Dimensions by input, beside the batch and those that the files leave open."""
        assert self._example is not None
        known, axes = named_tensors(target, self._example), axes_of(target, self._example, self.axes)
        found = {}
        for name, tensor in named_tensors(target, call).items():
            if name in known and known[name].dim() == tensor.dim():
                sizes = enumerate(zip(known[name].shape, tensor.shape, strict=True))
                found[name] = [dim for dim, (a, b) in sizes if dim and a != b and dim not in axes.get(name, {})]
        return {name: dims for name, dims in found.items() if dims}


def _note(name: str, known: tuple[int, ...], shape: tuple[int, ...], others: dict[str, list[int]]) -> str:
    return (
        f"lq: validation calls the target with {name} of shape {shape}, and the example has {known}. The exported "
        "files take the sizes of the example alone, so they will not be compared on such batches. "
        f"QATCallback(dynamic_axes={others}) leaves these sizes open."
    )
