"""What reaches the target while the user's own code runs."""

from __future__ import annotations

import random
from typing import Any

from torch import nn

from lq.conversion.on_cpu import as_float32
from lq.instrument.listen import Listener
from lq.tracing.structure import map_tensors

Call = tuple[tuple[Any, ...], dict[str, Any], Any]


class LastCall:
    """Remembers the last call of a module: arguments, keywords and output.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1)
        >>> last = LastCall(net)
        >>> _ = net(torch.ones(3, 2))
        >>> (x,), keywords, y = last.take()
        >>> x.shape, keywords, y.shape, last.take()
        (torch.Size([3, 2]), {}, torch.Size([3, 1]), None)
        >>> last.remove()
    """

    def __init__(self, module: nn.Module) -> None:
        self._call: Call | None = None
        self._misses, self._is_called = 0, False
        self._listener = Listener(module, after=self._note)

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._call = args, kwargs, output

    def take(self) -> Call | None:
        """The last call since the previous ``take``; ``None`` if there was none, as in a step that skips its batch."""
        call, self._call = self._call, None
        self._misses += call is None
        self._is_called = self._is_called or call is not None
        return call

    def check(self) -> None:
        """Check, when all steps are over, that some have called the module.

        Raises:
            ValueError: if there were steps, and none has.
        """
        if self._misses and not self._is_called:
            raise ValueError(
                "validation_step did not call the quantized target, so there is nothing to compare. Name the part that "
                "it does call, QATCallback(target=...); or call the target itself, as in self.model(x), where it calls "
                "a method, as in self.model.loss(x)."
            )

    def forget(self) -> None:
        """Take no notice of the calls so far."""
        self._call = None

    def remove(self) -> None:
        """Stop listening."""
        self._listener.remove()


class OneOfTheCalls(LastCall):
    """Remembers one call of a module, any of those since the last ``take``: over many steps, it is each in its turn.

    A step that calls the module for an anchor and a positive sample, or once for each step of a diffusion, shows the
    module data of several kinds.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 1)
        >>> one, found = OneOfTheCalls(net), set()
        >>> for _ in range(20):
        ...     _ = net(torch.zeros(1)), net(torch.ones(1)), net(torch.full((1,), 2.0))
        ...     (x,), _, _ = one.take()
        ...     found.add(x.item())
        >>> sorted(found)
        [0.0, 1.0, 2.0]
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._count, self._random = 0, random.Random(0)

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._count += 1
        if self._random.randrange(self._count) == 0:  # each of n calls is kept with a probability of 1 / n
            copied_args, copied_kwargs = on_cpu((args, kwargs))  # the step may write into them
            super()._note(copied_args, copied_kwargs, output)

    def take(self) -> Call | None:
        """One call since the previous ``take``; ``None`` if there was none."""
        self._count = 0
        return super().take()


def on_cpu(data: Any) -> Any:
    """A copy of tensors in any structure, on the CPU, those of half or double precision as float32.

    Example:
        >>> import torch
        >>> on_cpu({"image": torch.ones(1, dtype=torch.float16), "boxes": [torch.ones(1, dtype=torch.int64)]})
        {'image': tensor([1.]), 'boxes': [tensor([1])]}
    """
    return as_float32(map_tensors(data, lambda t: t.detach().to("cpu", copy=True)))
