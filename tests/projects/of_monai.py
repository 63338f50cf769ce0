"""Segmentation of volumes as in MONAI's tutorial for Lightning, with inference in sliding windows.

https://github.com/Project-MONAI/tutorials/blob/main/3d_segmentation/spleen_segmentation_3d_lightning.ipynb
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from monai.data import decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.layers import Norm
from monai.networks.nets import UNet
from monai.transforms import AsDiscrete, Compose, EnsureType
from torch import Tensor

from .case import Case, Fit
from .data import loaders

REQUIREMENTS = ("monai",)

CROP, VOLUME = 16, 24


class Net(L.LightningModule):
    """The tutorial's class, with fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self._model = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            channels=(8, 16, 32),
            strides=(2, 2),
            num_res_units=2,
            norm=Norm.BATCH,
        )
        self.loss_function = DiceLoss(to_onehot_y=True, softmax=True)
        self.post_pred = Compose([EnsureType("tensor", device="cpu"), AsDiscrete(argmax=True, to_onehot=2)])
        self.post_label = Compose([EnsureType("tensor", device="cpu"), AsDiscrete(to_onehot=2)])
        self.dice_metric = DiceMetric(include_background=False, reduction="mean", get_not_nans=False)
        self.validation_step_outputs: list[dict[str, Any]] = []

    def forward(self, x: Tensor) -> Any:
        return self._model(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self._model.parameters(), 5e-3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        images, labels = batch["image"], batch["label"]
        output = self.forward(images)
        loss = self.loss_function(output, labels)
        self.log("train_loss", loss.item())
        return {"loss": loss}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        images, labels = batch["image"], batch["label"]
        outputs: Any = sliding_window_inference(images, (CROP,) * 3, 4, self.forward)
        loss = self.loss_function(outputs, labels)
        predictions = [self.post_pred(i) for i in decollate_batch(outputs)]
        truths = [self.post_label(i) for i in decollate_batch(labels)]
        self.dice_metric(y_pred=predictions, y=truths)
        self.validation_step_outputs.append({"val_loss": loss, "val_number": len(predictions)})
        return self.validation_step_outputs[-1]

    def on_validation_epoch_end(self) -> None:
        val_loss = sum(output["val_loss"].sum().item() for output in self.validation_step_outputs)
        num_items = sum(output["val_number"] for output in self.validation_step_outputs)
        mean_val_dice = self.dice_metric.aggregate().item()
        self.dice_metric.reset()
        self.log_dict({"val_dice": mean_val_dice, "val_loss": val_loss / num_items})
        self.validation_step_outputs.clear()


def volumes(count: int, size: int, seed: int) -> list[dict[str, Tensor]]:
    """A bright box in noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        low = torch.randint(0, size // 2, (3,), generator=generator).tolist()
        label = torch.zeros(1, size, size, size)
        label[0][tuple(slice(start, start + size // 2) for start in low)] = 1
        image = 0.5 * label + 0.5 * torch.rand(label.shape, generator=generator)
        made.append({"image": image, "label": label})
    return made


def unet() -> Fit:
    """Crops to train on, whole volumes to validate on."""
    return Fit(Net(), loaders(volumes(16, CROP, 0), volumes(3, VOLUME, 1), batch=3))


CASES = (Case("Net with UNet and sliding windows", unet, "val_dice"),)
