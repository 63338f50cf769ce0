"""Does the module's ``forward`` do more than call the target? The artifact holds the target alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lq.instrument.listen import Listener
from lq.lightning_module.target import target_of
from lq.tracing.structure import tensors_of


class ForwardCheck:
    """Compares, in the first call of ``forward`` of a module, what that gets and gives with what its target does.

    Args:
        module: the LightningModule.
        name: of its target, a part of it.
        tell: gets a sentence if there is something between the two.

    Example:
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return self.model(x).softmax(1)
        >>> module = Classifier()
        >>> check = ForwardCheck(module, "model", print)
        >>> _ = module(torch.ones(1, 2))
        lq: Classifier.forward does more than call model (after it), but the artifact contains only model, ...
    """

    def __init__(self, module: LightningModule, name: str, tell: Callable[[str], None]) -> None:
        self.name, self.kind, self.tell = name, type(module).__name__, tell
        self._given: list[Tensor] | None = None
        self._calls: list[tuple[list[Tensor], list[Tensor]]] = []
        self._listeners = [
            Listener(module, before=self._begin, after=self._end),
            Listener(target_of(module, name), after=self._note),
        ]

    def remove(self) -> None:
        """Stop listening, and let go of what was heard."""
        self._given, self._calls = None, []
        for listener in self._listeners:
            listener.remove()

    def _begin(self, args: Any, kwargs: Any, _: Any) -> None:
        self._given, self._calls = tensors_of((args, kwargs)), []

    def _note(self, args: Any, kwargs: Any, output: Any) -> None:
        if self._given is not None:
            self._calls.append((tensors_of((args, kwargs)), tensors_of(output)))

    def _end(self, args: Any, kwargs: Any, output: Any) -> None:
        given, calls = self._given, self._calls
        self._given, self._calls = None, []
        if not calls or given is None:
            return
        self.remove()
        (taken, returned), *others = calls
        parts = [
            "before it" if not _all_among(taken, given) else "",
            "after it" if not _all_among(tensors_of(output), returned) else "",
            "more than once" if others else "",
        ]
        if any(parts):
            self.tell(
                f"lq: {self.kind}.forward does more than call {self.name} ({', '.join(filter(None, parts))}), but the "
                f"artifact contains only {self.name}, with its inputs and outputs. To export all of forward, write "
                "QATCallback(target='')."
            )


def _all_among(tensors: list[Tensor], known: list[Tensor]) -> bool:
    return all(any(tensor is other or _same_but_for_layout(tensor, other) for other in known) for tensor in tensors)


def _same_but_for_layout(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor was only laid out anew, as by ``x.contiguous(memory_format=torch.channels_last)``."""
    alike = all(getattr(tensor, name) == getattr(other, name) for name in ("shape", "dtype", "device", "layout"))
    if not alike or tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.stride() != other.stride() and torch.equal(tensor, other)
