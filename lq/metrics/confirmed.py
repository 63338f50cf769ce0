"""Which figure of a module is its accuracy, where a batch has more parts than inputs and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lq.metrics.comparison import ModelComparison

ACCURACY = "accuracy"


class OwnAccuracy(NamedTuple):
    """A figure that is an accuracy.

    Args:
        name: under which the module logs it.
        scale: 100 if that is in percent, else 1.

    Example:
        >>> OwnAccuracy("val_acc", 100).added_to({"val_acc": 75.0})
        {'val_acc': 75.0, 'accuracy': 0.75}
    """

    name: str
    scale: int

    def added_to(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Figures of a version of the model, with its accuracy under its usual name."""
        known = self.name in figures and ACCURACY not in figures
        return {**figures, ACCURACY: figures[self.name] / self.scale} if known else dict(figures)


class ConfirmedAccuracy:
    """Finds the accuracy where a batch is ``(inputs, labels, ...)``.

    Which part of such a batch is the labels is a guess. It is the second one by convention, and counts only if the
    accuracy that it gives is among the figures that the module itself logs.

    Example:
        >>> import torch
        >>> accuracy = ConfirmedAccuracy()
        >>> accuracy.update(torch.eye(4), ("images", torch.tensor([0, 1, 2, 0]), "indices"))
        >>> accuracy.among({"val_loss": 0.2, "val_acc": 0.75})
        OwnAccuracy(name='val_acc', scale=1)
        >>> accuracy.among({"val_acc": 0.5}) is None
        True
    """

    def __init__(self) -> None:
        self._comparison: ModelComparison | None = ModelComparison([""], sync_on_compute=False)

    def update(self, output: Any, batch: Any) -> None:
        """Add a batch.

        Args:
            output: of the model.
            batch: of the data loader; one that does not fit ends the search.
        """
        if self._comparison is None:
            return
        try:
            if not isinstance(batch, (tuple, list)) or len(batch) < 3:
                raise ValueError("there is nothing to guess")
            self._comparison.update({"": output}, batch[1])
        except ValueError:
            self._comparison = None

    def among(self, own: Mapping[str, float]) -> OwnAccuracy | None:
        """The figure that is the accuracy, if one is.

        Args:
            own: what the module itself has logged.
        """
        if self._comparison is None or self._comparison.is_empty:
            return None
        accuracy = self._comparison.compute()[""][ACCURACY]
        scales = [OwnAccuracy(name, scale) for scale in (1, 100) for name in own]
        return next((one for one in scales if math.isclose(own[one.name], one.scale * accuracy, rel_tol=1e-5)), None)
