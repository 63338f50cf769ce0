"""Inner layers of the float model that teach those of the quantized one, as "hints" beside the output."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lq.metrics.outputs import describe, main_tensor

Teach = Callable[[str, Tensor, Tensor], None]


def check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """Refuse names that are no modules.

    Args:
        model: the target.
        layers: names in it.

    Raises:
        ValueError: with the nearest name, if one is unknown.

    Example:
        >>> check_layers(nn.Sequential(nn.ReLU()), ["0"])
    """
    known = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in known:
            near = difflib.get_close_matches(layer, known, 3) or known[:3]
            modules = f"has {', '.join(map(repr, near))}, as named_modules() gives them" if near else "has no modules"
            raise ValueError(
                f"distill: layers={list(layers)} names {layer!r}, which is no module of {type(model).__name__}; that "
                f"{modules}."
            )


class Hints:
    """Hears each layer in both models, and pairs what they compute.

    Args:
        layers: names, in both models.
        student: the prepared target.
        teacher: the float one, which is called first.
        teach: gets the name of a layer and its output in the student and in the teacher.

    Example:
        >>> import torch
        >>> student, teacher = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Identity())
        >>> hints = Hints(["0"], student, teacher, print)
        >>> hints.is_on = True
        >>> _ = teacher(torch.tensor([-1.0])), student(torch.tensor([-1.0]))
        0 tensor([0.]) tensor([-1.])
        >>> hints.remove()
    """

    def __init__(self, layers: Sequence[str], student: nn.Module, teacher: nn.Module, teach: Teach) -> None:
        self.is_on = False
        self._teach = teach
        self._answers: dict[str, deque[Tensor]] = {name: deque() for name in layers}
        # Hooks, not lq's own listeners: the layer then computes what it would without a BatchNorm folded into it.
        self._handles = [
            model.get_submodule(name).register_forward_hook(_Hook(name, hear))
            for name in layers
            for model, hear in ((teacher, self._remember), (student, self._compare))
        ]

    def forget(self) -> None:
        """What the teacher has said is of another call."""
        for answers in self._answers.values():
            answers.clear()

    def remove(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _remember(self, name: str, output: Any) -> None:
        if self.is_on:
            self._answers[name].append(main_tensor(output).detach().clone())  # what follows may work in place

    def _compare(self, name: str, output: Any) -> None:
        if not self.is_on or not self._answers[name]:  # it is called again, for activation checkpointing
            return
        student, teacher = main_tensor(output), self._answers[name].popleft()
        if student.shape != teacher.shape:
            raise ValueError(
                f"distill: the layer {name!r} returns {describe(output)} in training and {describe(teacher)} in "
                "evaluation. Name layers that return the same shape in both."
            )
        self._teach(name, student, teacher)


class _Hook:
    """A forward hook; copies of the module hear nothing."""

    def __init__(self, name: str, hear: Callable[[str, Any], None]) -> None:
        self.name, self.hear = name, hear

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.hear(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _deaf

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _copied, ()


def _deaf(*_: Any) -> None:
    """The hook of a copy."""


def _copied() -> Callable[..., None]:
    return _deaf
