"""The float model that a quantization-aware training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lq.checkpoints.checkpoint import check_state
from lq.checkpoints.entry import TEACHER
from lq.deployment.deploy import Baseline
from lq.fields import Field
from lq.lightning_module.stand_in import float_weights
from lq.lightning_module.target import float_state, target_of


class FloatReference:
    """A copy of the float target on the CPU: what the FP32 figures are taken on.

    Args:
        model: the copy; ``None`` if the module came prepared.

    Example:
        >>> FloatReference(nn.Linear(2, 1)).is_usable, FloatReference().is_usable
        (True, False)
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forget the figures of the last run."""
        self.has_weights, self.is_judged, self.is_of_checkpoint = True, False, False
        self.results: dict[str, float] = {}
        self.rest: dict[str, Any] = {}

    @property
    def is_usable(self) -> bool:
        """Whether ``model`` holds, or will hold, the weights that QAT starts from."""
        return self.model is not None and self.has_weights

    @property
    def is_due(self) -> bool:
        """Whether it is to be judged: once, while its figures are not known."""
        return self.is_usable and not (self.results or self.is_judged)

    def take_results(self, results: Mapping[str, float]) -> None:
        """Note the figures that it was judged by."""
        self.results, self.is_judged = dict(results), True

    def forget_unless_matching(self, target: nn.Module) -> None:
        """Forget a model whose weights are not those of this prepared target: a callback may serve several modules."""
        if self.model is not None and _shapes(self.model.state_dict()) != _shapes(float_state(target)):
            self.model = None

    def take_weights(self, module: nn.Module, name: str) -> None:
        """Copy the weights of the module whose prepared target has this name: of the target, and all others."""
        if self.model is None:
            return
        self.model.load_state_dict(float_state(target_of(module, name)))
        prefix = f"{name}." if name else ""
        self.rest = {key: value for key, value in float_weights(module, name).items() if not key.startswith(prefix)}

    def teacher(self) -> nn.Module:
        """The model, with the weights that QAT started from.

        Raises:
            ValueError: if these are not known.
        """
        if self.model is None or not self.has_weights:
            raise ValueError(
                "distill needs the weights that QAT started from: this module was prepared for QAT before, or the "
                "checkpoint is of a run without distill, and holds none. Start from the float checkpoint, or leave "
                "distill out."
            )
        return self.model

    def take_teacher(self, weights: Mapping[str, Any]) -> None:
        """Take the weights that QAT started from out of a checkpoint.

        Raises:
            ValueError: if they do not fit.
        """
        if self.model is None:
            return
        state = Field({TEACHER: weights}, "checkpoint")[TEACHER]
        check_state(state)
        if _shapes(weights) != _shapes(self.model.state_dict()):
            raise ValueError(f"checkpoint: {TEACHER} holds other weights than {type(self.model).__name__} has.")
        self.model.load_state_dict(weights)
        self.has_weights = self.is_of_checkpoint = True

    def baseline(self) -> Baseline:
        """For the FP32 row of the closing table."""
        return Baseline(self.model, dict(self.results), self.has_weights, self.rest)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}
