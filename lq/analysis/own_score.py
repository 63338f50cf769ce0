"""Layers ranked by what the user's own validation logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch import LightningModule
from torch import nn

from lq.analysis.score import OwnScore
from lq.deployment.evaluation import ValidationData, logged_by
from lq.lightning_module.copies import detached_copy
from lq.lightning_module.loaders import spread
from lq.lightning_module.validation import Sample


def needs_figure(who: str) -> str:
    """What is said where nothing can be compared.

    Example:
        >>> needs_figure("auto_exclude").partition(":")[0]
        'auto_exclude needs a figure to compare'
    """
    return (
        f"{who} needs a figure to compare: the batches are not plain inputs and labels. Name a figure that "
        "validation_step logs, QATCallback(monitor='val_...', mode='max'), or give a metric and a target_fn."
    )


def own_score(
    module: LightningModule,
    name: str,
    samples: Sequence[Sample],
    batches: int,
    validation: ValidationData,
    who: str,
) -> OwnScore | None:
    """The figure that counts, of those that the module logs, over some batches of its validation data.

    Args:
        module: a copy of the user's module in float, on the CPU.
        name: of its target.
        samples: what layers are run on besides.
        batches: of each validation loader.
        validation: the validation data, and which figure counts.
        who: asks, for the message.

    Returns:
        the score; ``None`` if a metric of torchmetrics was given, no figure counts, or the validation does not log it.

    Raises:
        ValueError: if nobody says which way the figure is better.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lq.models.digits import DigitsClassifier
        >>> images = DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.tensor([3, 3, 3, 7])), batch_size=2)
        >>> data = ValidationData([images], monitor="val/accuracy", higher_is_better=True)
        >>> score = own_score(DigitsClassifier(4), "model", [], 2, data, "lq analyze")
        >>> other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> _ = other[1].bias.data.copy_(torch.eye(10)[3])  # of black images it says 3
        >>> score.name, score.figure(other)
        ('val/accuracy', 0.75)
    """
    monitor = validation.monitor
    if monitor is None or validation.metric is not None:
        return None
    own = detached_copy(module)
    some = replace(validation, loaders=spread(validation.loaders, batches), limit=batches, show_progress=False)
    if monitor not in logged_by(own, name, some, "fp32"):
        return None  # a ModelCheckpoint may look at figures of the training
    if validation.higher_is_better is None:
        raise ValueError(
            f"{who} does not know which way {monitor} is better: give QATCallback(monitor={monitor!r}, mode='max'), "
            "or mode='min'."
        )

    def figure(model: nn.Module) -> float:
        return logged_by(own, name, some, "a trial", model)[monitor]

    return OwnScore(samples, higher_is_better=validation.higher_is_better, figure=figure, label=monitor)
