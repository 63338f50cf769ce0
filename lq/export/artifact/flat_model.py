"""A runtime that knows nothing but tensors, called as the original model is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from lq.export.artifact.signature import Signature


class FlatModel:
    """A runtime that takes and returns lists of tensors, callable as the original model is.

    Args:
        run: the runtime.
        signature: of the original model.
        at_once: the largest batch that the runtime takes; a larger one is run in parts. ``None`` is any.
        one_call_at_a_time: let threads wait for each other, as inputs and outputs lie in the runtime's own memory.

    Example:
        >>> net = torch.nn.Linear(4, 2)
        >>> signature = Signature.of(net, ((torch.ones(1, 4),), {}), {"logits": torch.ones(1, 2), "loss": None})
        >>> model = FlatModel(lambda tensors: [net(tensors[0])], signature, at_once=2)
        >>> found = model(input=torch.ones(3, 4))  # run in two parts
        >>> found["logits"].shape, found["loss"]
        (torch.Size([3, 2]), None)
    """

    def __init__(
        self,
        run: Callable[[list[Tensor]], list[Tensor]],
        signature: Signature,
        at_once: int | None = None,
        *,
        one_call_at_a_time: bool = False,
    ) -> None:
        self.run, self.signature, self.at_once = run, signature, at_once
        self._turn: AbstractContextManager[Any] = Lock() if one_call_at_a_time else nullcontext()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors on the CPU, in the structure that the original model takes and returns.

        Raises:
            ValueError: if a tensor has another type than the runtime takes, which some would convert without a word.
        """
        tensors = [t.detach().cpu().contiguous() for t in self.signature.tensors(args, kwargs)]
        self.signature.check_types(tensors)
        parts = (
            [tensors] if self.at_once is None else zip(*(torch.split(t, self.at_once) for t in tensors), strict=True)
        )
        with self._turn:
            results = [self.run([t.contiguous() for t in part]) for part in parts]
        return self.signature.restore(
            [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*results, strict=True)]
        )
