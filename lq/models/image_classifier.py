"""The training loop shared by the recipes' models."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lq.checks import check_integer
from lq.models.optimizer import OptimizerConfig, build_optimizer, build_scheduler


class ImageClassifier(L.LightningModule):
    """Train a classifier with cross-entropy; the network is the submodule `model`.

    Logs `train/loss`, `val/loss`, `val/accuracy`, `test/loss` and `test/accuracy`.

    Args:
        model: maps images (N, C, H, W) to logits (N, num_classes).
        num_classes: number of classes.
        optimizer: optimizer and schedule; None for the default SGD.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        channels_last: keep weights and activations in channels-last order, often faster on CPUs.

    Raises:
        TypeError: the number of classes is no whole number.
        ValueError: fewer than two classes, or label smoothing out of its range.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> ImageClassifier(net, num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        optimizer: OptimizerConfig | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        self.optimizer_config = optimizer or OptimizerConfig()
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(memory_format=self.memory_format)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Any:
        """Return what the network returns: logits (N, num_classes)."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = classification_loss(self(batch[0]), batch[1], self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the validation part."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the test part."""
        self._evaluate("test", batch, self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Most likely class of each image, (N,)."""
        logits: Tensor = self(batch[0])
        return logits.argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build what `optimizer` asks for; the schedule, if any, moves at every step."""
        optimizer = build_optimizer(self.optimizer_config, self.parameters())
        if self.optimizer_config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(self.optimizer_config, optimizer, steps)
        assert scheduler is not None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluate(self, part: str, batch: tuple[Tensor, Tensor], accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{part}/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{part}/accuracy", accuracy, prog_bar=True, batch_size=len(labels))


def classification_loss(output: Any, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a network's training output; auxiliary heads are left out.

    Args:
        output: logits (N, num_classes), or what GoogLeNet and Inception return in training: an object whose
            attribute `logits` holds them.
        labels: classes (N,), or probabilities (N, num_classes) of a teacher.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Returns:
        The mean over the batch, a scalar.

    Example:
        >>> classification_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.6931)
    """
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def check_num_classes(num_classes: int) -> None:
    """Refuse anything but an integer of at least 2.

    Example:
        >>> check_num_classes(1)
        Traceback (most recent call last):
        ...
        ValueError: num_classes=1 must be at least 2; write e.g. num_classes=10.
    """
    check_integer("num_classes", num_classes, 10, least=2)
