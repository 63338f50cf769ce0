"""The float model teaches the quantized one, whatever the user's training step does with its output.

The loss is the user's: it may be returned, taken apart, or passed to several optimizers by hand, and wrapping it would
have to know which. So its gradient is extended instead, where it leaves the loss for the target: a hook on the output
of the target adds the gradient of the distillation loss. Whatever scales the user's gradient scales that, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lq.callback.compilation import is_compiled
from lq.callback.hints import Hints, check_layers
from lq.checks import check_number
from lq.compat.torch_private import tree_map_only
from lq.conversion.on_cpu import as_float32
from lq.core.distillation import distillation_loss, hint_loss, is_class_scores
from lq.instrument.listen import Listener
from lq.metrics.outputs import describe, main_tensor, plain_targets_of


@dataclass(frozen=True)
class Distillation:
    """How the float model teaches the quantized one.

    Args:
        temperature: by which class scores are divided before the softmax, above 0.
        weight: of the distillation loss beside the user's, above 0.
        loss: "kl" for class scores in dimension 1 of the output, "mse" for anything else; ``None`` takes "kl" if the
            labels of the batch are classes.
        layers: modules inside the target whose outputs are taught as well, by the names that ``named_modules()`` gives.
        layer_weight: of the sum of their losses (:func:`lq.core.distillation.hint_loss`), above 0.

    Raises:
        TypeError: if a number is none.
        ValueError: if one is out of range, or the loss is unknown.

    Example:
        >>> Distillation(temperature=4.0).weight
        1.0
    """

    temperature: float = 1.0
    weight: float = 1.0
    loss: str | None = None
    layers: tuple[str | int, ...] = ()
    layer_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "weight", "layer_weight"):
            value = getattr(self, name)
            check_number(f"distill: {name}", value, 1.0)
            if not 0 < value < math.inf:
                raise ValueError(f"distill: {name}={value!r} must be above 0 and finite, e.g. {name}=1.0.")
        if self.loss not in (None, "kl", "mse"):
            raise ValueError(f"distill: loss={self.loss!r} must be 'kl' for class scores, 'mse', or None to find out.")
        names = self.layers if isinstance(self.layers, (list, tuple)) else [None]
        if not all(isinstance(name, (str, int)) for name in names):
            raise TypeError(f"distill: layers={self.layers!r} must be names, e.g. layers=['features.18'].")
        object.__setattr__(self, "layers", tuple(names))

    @property
    def figures(self) -> tuple[str, ...]:
        """What a training logs of it: the loss of the output, and those of the layers."""
        return "qat/distillation", *(f"qat/distillation/{name}" for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the layers; YAML takes the names in an nn.Sequential for numbers."""
        return tuple(dict.fromkeys(map(str, self.layers)))


def check_teaching(settings: Distillation, module: LightningModule, model: nn.Module) -> None:
    """Refuse, before the first step, a training that hears nothing of its target.

    Args:
        settings: how it teaches.
        module: the LightningModule.
        model: the float target.

    Raises:
        ValueError: if compiled code runs it, or a layer is unknown.

    Example:
        >>> module = LightningModule()
        >>> module.model = nn.Sequential(nn.Linear(4, 2))
        >>> check_teaching(Distillation(layers=["1"]), module, module.model)
        Traceback (most recent call last):
        ...
        ValueError: distill: layers=['1'] names '1', which is no module of Sequential; that has '0', ...
    """
    check_layers(model, settings.names)
    if is_compiled(module):
        raise ValueError(
            f"distill needs a hook on {type(model).__name__}, but compiled code does not run hooks. Train without "
            "torch.compile, or leave distill out."
        )


class Teacher:
    """The float model beside the target in training: one forward more for each of its calls, without gradient.

    Args:
        settings: how it teaches.
        trainer: of the fit, which knows how losses are scaled.
        module: the LightningModule.
        target: the prepared target in it.
        model: the float target with the weights from before QAT.
        labels_of: batch -> labels; ``None`` for :func:`lq.metrics.outputs.plain_targets_of`.

    Example:
        >>> from lq.backends.prepare import prepare
        >>> module, float_model = LightningModule(), nn.Sequential(nn.Linear(1, 1))
        >>> module.model = prepare(nn.Sequential(nn.Linear(1, 1)))
        >>> _ = float_model[0].weight.data.fill_(3.0), module.model[0].weight.data.fill_(2.0)
        >>> _ = float_model[0].bias.data.zero_(), module.model[0].bias.data.zero_()
        >>> settings, trainer = Distillation(loss="mse"), Trainer(barebones=True)
        >>> teacher = Teacher(settings, trainer, module, module.model, float_model, labels_of=None)
        >>> teacher.begin(batch=None)
        >>> module.model(torch.ones(1, 1)).sum().backward()
        >>> teacher.end()  # (2 - 3)^2, whose slope of -2 is added to that of the sum, which is 1
        {'qat/distillation': tensor(1.)}
        >>> module.model[0].weight.grad
        tensor([[-1.]])
    """

    def __init__(
        self,
        settings: Distillation,
        trainer: Trainer,
        module: LightningModule,
        target: nn.Module,
        model: nn.Module,
        labels_of: Callable[[Any], Any] | None,
    ) -> None:
        self.settings, self.trainer, self.module = settings, trainer, module
        self.model, self.labels_of = model, labels_of or plain_targets_of
        self.losses: list[Tensor] = []
        self.hint_losses: dict[str, list[Tensor]] = {}
        self._labels: Any = None
        self._teaches = False
        self._answers: list[Any] = []
        self._hints = Hints(settings.names, target, model, self._teach_layer)
        self._listener = Listener(target, before=self._answer, after=self._compare)

    def begin(self, batch: Any) -> None:
        """A training step begins."""
        self.model.to(self.module.device).eval()
        self.losses, self._answers, self._teaches = [], [], True
        self.hint_losses, self._hints.is_on = {name: [] for name in self.settings.names}, True
        self._labels = None if self.settings.loss is not None else self.labels_of(batch)

    def end(self) -> dict[str, Tensor]:
        """The training step is over.

        Returns:
            what is to be logged, if the target was called: the distillation loss, and that of each layer.

        Raises:
            ValueError: if a layer was not called in the target.
        """
        self._teaches = self._hints.is_on = False
        self._hints.forget()
        if not self.losses:
            return {}
        for layer, losses in self.hint_losses.items():
            if not losses:
                raise ValueError(
                    f"distill: the layer {layer!r} is not called in the forward of {type(self.model).__name__}, or has "
                    "no gradient. Name another one, or leave it out of layers."
                )
        found = zip(self.settings.figures, [self.losses, *self.hint_losses.values()], strict=True)
        return {name: torch.stack(losses).mean() for name, losses in found}

    def remove(self) -> None:
        """Stop teaching."""
        self._listener.remove()
        self._hints.remove()

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if not self._teaches:
            return
        # Copies, for the target may work in place; and what it is called with may be of half precision.
        given, keywords = tree_map_only(Tensor, lambda t: t.detach().clone(), as_float32((args, kwargs)))
        self._hints.forget()
        with torch.no_grad():
            self._answers.append(self.model(*given, **keywords))

    def _compare(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._teaches:
            return
        student, teacher = main_tensor(output), main_tensor(self._answers.pop())
        if not student.requires_grad:  # an exponential average, or a part that is frozen
            return
        if student.shape != teacher.shape:
            raise ValueError(
                f"distill compares the output of the target in training with that of its float version in evaluation, "
                f"but these differ: {describe(output)} and {describe(teacher)}. Name an inner module whose output has "
                "the same shape in both modes, QATCallback(target=...), or leave distill out."
            )
        temperature = self._temperature(student)
        loss = self._add(student, lambda ours: distillation_loss(ours, teacher, temperature), self.settings.weight)
        self.losses.append(loss)

    def _teach_layer(self, name: str, student: Tensor, teacher: Tensor) -> None:
        if student.requires_grad:
            loss = self._add(student, lambda ours: hint_loss(ours, teacher), self.settings.layer_weight)
            self.hint_losses[name].append(loss)

    def _add(self, student: Tensor, loss_of: Callable[[Tensor], Tensor], weight: float) -> Tensor:
        """Add the gradient of a loss to that which comes for a tensor; returns the loss."""
        with torch.enable_grad():
            leaf = student.detach().float().requires_grad_()
            loss = loss_of(leaf)
            (slope,) = torch.autograd.grad(loss, leaf)
        student.register_hook(_Once(lambda: self._scaled(slope, weight)))  # type: ignore[no-untyped-call]
        return loss.detach()

    def _temperature(self, student: Tensor) -> float | None:
        scores = is_class_scores(student, self._labels) if self.settings.loss is None else self.settings.loss == "kl"
        return self.settings.temperature if scores else None

    def _scaled(self, slope: Tensor, weight: float) -> Tensor:
        """The gradient on the scale of the user's: Lightning divides losses that accumulate, AMP multiplies them."""
        if self.module.automatic_optimization:
            weight /= self.trainer.accumulate_grad_batches
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        slope = slope * weight
        return slope if scaler is None else scaler.scale(slope)


class _Once:
    """Adds a tensor to the first gradient that comes: of two losses that share an output, one brings it."""

    def __init__(self, added: Callable[[], Tensor]) -> None:
        self.added: Callable[[], Tensor] | None = added

    def __call__(self, grad: Tensor) -> Tensor | None:
        if self.added is None:
            return None
        added, self.added = self.added(), None
        return grad + added.to(grad.dtype)
